"""Settings of one request, through NeMo's context variable `ctd`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from tests.nemo.words import ANSWER, UNAVAILABLE


def conversation(overrides: object) -> list[dict[str, Any]]:
    return [{"role": "context", "content": {"ctd": overrides}}, {"role": "user", "content": "an odd question"}]


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        ({}, UNAVAILABLE),
        ({"on_failure": "allow"}, ANSWER),
        ({"on_failure": "block"}, UNAVAILABLE),
        ({"on_failure": "never"}, UNAVAILABLE),
        ({"mode": "shadow"}, UNAVAILABLE),
        ("allow", UNAVAILABLE),
    ],
    ids=str,
)
async def test_a_request_chooses_only_what_it_may(
    make_rail_folder: Callable[..., Path], judge: Any, overrides: object, answer: str
) -> None:
    judge.is_down = True
    folder = make_rail_folder(allow_overrides=["on_failure"], override_bounds={"on_failure": "allow"})
    llm = FakeLLMModel(responses=[ANSWER])
    app = LLMRails(RailsConfig.from_path(str(folder)), llm=llm)
    reply = await app.generate_async(messages=conversation(overrides))
    assert reply["content"] == answer
    assert llm.inference_count == (answer == ANSWER)


async def test_in_colang_2(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    judge.is_down = True
    folder = make_rail_folder(
        allow_overrides=["on_failure"],
        override_bounds={"on_failure": "allow"},
        config={"colang_version": "2.x", "import_paths": [], "rails": {}},
    )
    (folder / "main.co").write_text(
        "import core\nimport guardrails\nimport llm\nimport ctd_guardrail.nemo\n\n"
        "flow main\n  activate llm continuation\n\n"
        "flow input rails $input_text\n  ctd check input\n"
    )
    config = RailsConfig.from_path(str(folder))
    for overrides, blocked in (
        ({"on_failure": "block"}, True),
        ({"mode": "shadow"}, True),
        ({"on_failure": "allow"}, False),
    ):
        app = LLMRails(config, llm=FakeLLMModel(responses=[f'  bot say "{ANSWER}"'] * 20))
        reply = await app.generate_async(messages=conversation(overrides))
        assert (UNAVAILABLE in reply["content"]) is blocked
