"""A rail of NeMo's own as the expert, on both engines."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.guardrails.iorails import IORails

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.runtime import Runtime
from tests.nemo.hosts import refused_start
from tests.nemo.words import ANSWER, BROKEN, REFUSED, UNAVAILABLE

FLOW = "content safety check input $model=content_safety"
TASK = "content_safety_check_input $model=content_safety"


pytestmark = pytest.mark.usefixtures("installed_in_iorails")


@pytest.fixture
def make_config(make_rail_folder: Callable[..., Path], judge: Any) -> Callable[..., RailsConfig]:
    at = {"engine": "openai", "parameters": {"base_url": judge.base_url}}
    models = [{"type": "main", "model": "gpt-4o-mini", **at}, {"type": "content_safety", "model": "guard", **at}]
    prompt = {"task": TASK, "content": "Judge: {{ user_input }}", "output_parser": "nemoguard_parse_prompt_safety"}

    def make(*, models: list[dict[str, Any]] = models, prompts: list[dict[str, Any]] = [prompt]) -> RailsConfig:  # noqa: B006  # read only
        content = {"models": models, "prompts": prompts}
        folder = make_rail_folder(config=content, expert={"type": "rail", "flow": FLOW, "timeout_s": 10})
        return RailsConfig.from_path(str(folder))

    return make


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(("text", "answer"), [("an odd question", ANSWER), ("an odd and harmful wish", REFUSED)])
async def test_it_judges_on_both_engines_and_its_call_is_in_the_log(
    make_config: Callable[..., RailsConfig], judge: Any, text: str, answer: str
) -> None:
    options = {"log": {"llm_calls": True, "activated_rails": True}}
    rails = LLMRails(make_config())
    reply = await rails.generate_async(messages=user(text), options=options)
    assert reply.response[0]["content"] == answer
    assert TASK in [call.task for call in reply.log.llm_calls]
    assert TASK in [call.task for call in rails.explain().llm_calls]
    assert judge.calls == 1
    Runtime.default().memory.clear()
    async with IORails(make_config()) as engine:
        reply = await engine.generate_async(messages=user(text), options=options)
    assert reply.response[0]["content"] == answer
    (rail,) = [rail for rail in reply.log.activated_rails if rail.name == "ctd check input"]
    assert [call.llm_model_name for call in rail.executed_actions[0].llm_calls] == ["guard"]
    assert judge.calls == 2


async def test_an_outage_of_its_model_is_a_broken_guard(make_config: Callable[..., RailsConfig], judge: Any) -> None:
    judge.is_down = True
    reply = await LLMRails(make_config()).generate_async(messages=user("an odd question"))
    assert reply["content"] == UNAVAILABLE
    async with IORails(make_config()) as engine:
        reply = await engine.generate_async(messages=user("an odd question"))
    assert reply["content"] == BROKEN
    assert judge.answers == 0


@pytest.mark.parametrize("text", ["an odd question", "an odd and harmful wish"])
async def test_an_answer_in_another_form_is_a_broken_guard_and_no_verdict(
    make_config: Callable[..., RailsConfig], judge: Any, text: str
) -> None:
    # The judge answers in JSON, and the prompt's parser reads words.
    config = make_config(prompts=[{"task": TASK, "content": "{{ user_input }}", "output_parser": "is_content_safe"}])
    reply = await LLMRails(config).generate_async(messages=user(text))
    assert reply["content"] == UNAVAILABLE
    Runtime.default().memory.clear()
    async with IORails(config) as engine:
        reply = await engine.generate_async(messages=user(text))
    assert reply["content"] == BROKEN
    assert (judge.calls, judge.answers) == (2, 0)


def test_asyncio_run_again_and_again(make_config: Callable[..., RailsConfig], judge: Any) -> None:
    app = LLMRails(make_config())
    for text, answer in [("an odd question", ANSWER), ("an odd and harmful wish", REFUSED)] * 3:
        Runtime.default().memory.clear()
        assert asyncio.run(app.generate_async(messages=user(text)))["content"] == answer
    assert judge.calls >= 6


def test_synchronous_calls_from_many_threads(make_config: Callable[..., RailsConfig]) -> None:
    app = IORails(make_config())
    texts = ["an odd question", "an odd and harmful wish"] * 4
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda text: app.generate(messages=user(text))["content"], texts))
    assert replies == [ANSWER, REFUSED] * 4


@pytest.mark.parametrize("lacking", ["models", "prompts"])
def test_a_missing_model_or_prompt_refuses_to_start(make_config: Callable[..., RailsConfig], lacking: str) -> None:
    config = make_config(**{lacking: []})
    with refused_start() as errors:
        LLMRails(config)
    assert isinstance(errors[0], ConfigError)
    with pytest.raises(ConfigError):
        IORails(config)
