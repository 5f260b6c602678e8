"""NeMo's own rail for detectors in front of the sidecar, on both engines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nemoguardrails import Guardrails, RailsConfig

from ctd_guardrail.sidecar.service import Status

ANSWER = "the main LLM's answer"


def host_folder(folder: Path, url: str, judge: Any) -> Path:
    classifier = {"engine": "fms", "model": "ctd", "base_url": url, "blocked_labels": ["ctd_block"]}
    model = {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": {"base_url": judge.base_url}}
    rails = {
        "config": {"hf_classifier": {"ctd": classifier}},
        "input": {"flows": ['hf classifier check input $classifier="ctd"']},
    }
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump({"models": [model], "rails": rails}))
    return folder


@pytest.mark.parametrize("engine", ["LLMRails", "IORails"])
async def test_verdicts_reach_the_host_and_no_verdict_is_a_block(
    engine: str,
    make_rail_folder: Callable[..., Path],
    make_sidecar: Callable[..., Any],
    judge: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    sidecar = make_sidecar(make_rail_folder())
    config = RailsConfig.from_path(str(host_folder(tmp_path / "host", sidecar.url, judge)))
    is_io = engine == "IORails"
    async with Guardrails(config, use_iorails=is_io, require_iorails=is_io) as app:

        async def is_answered(text: str) -> bool:
            before = judge.answers
            reply = await app.generate_async(messages=[{"role": "user", "content": text}])
            assert (ANSWER in str(reply)) is (judge.answers == before + 1)
            return ANSWER in str(reply)

        assert await is_answered("a plain question")
        assert not await is_answered("a plain threat")
        assert await is_answered("an odd question")
        assert not await is_answered("an odd and harmful wish")
        judge.is_down = True
        assert not await is_answered("an odd question, but another one")
        judge.is_down = False
        sidecar.service.status = Status.LOADING  # answers 503
        assert not await is_answered("a plain question")
