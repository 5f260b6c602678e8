"""What the hosts do with actions that misbehave, and why this rail's never does."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.guardrails.iorails import IORails
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.nemo.action import screen
from ctd_guardrail.nemo.client import ClientRequest
from tests.nemo.hosts import refused_start
from tests.nemo.words import ANSWER, BROKEN, REFUSED, UNAVAILABLE

pytestmark = pytest.mark.usefixtures("installed_in_iorails")


@pytest.fixture
def make_config(make_rail_folder: Callable[..., Path], judge: Any) -> Callable[..., RailsConfig]:
    model = {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": {"base_url": judge.base_url}}

    def make(*, parallel: bool = False, **config: Any) -> RailsConfig:
        rails = {"input": {"flows": ["ctd check input"], "parallel": parallel}}
        return RailsConfig.from_path(str(make_rail_folder(config={"models": [model], "rails": rails} | config)))

    return make


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_cancellation_from_inside_does_not_open_the_gate(
    make_config: Callable[..., RailsConfig], judge: Any, monkeypatch: pytest.MonkeyPatch, *, parallel: bool
) -> None:
    async def cancelled(self: Any, conversation: Any) -> Any:
        raise asyncio.CancelledError

    monkeypatch.setattr(OpenAIExpert, "score", cancelled)
    llm = FakeLLMModel(responses=[ANSWER] * 10)
    rails = LLMRails(make_config(parallel=parallel), llm=llm)
    async with IORails(make_config(parallel=parallel)) as engine:
        for _ in range(10):
            assert (await rails.generate_async(messages=user("an odd question")))["content"] == UNAVAILABLE
            assert (await engine.generate_async(messages=user("an odd question")))["content"] == BROKEN
    assert llm.inference_count == judge.answers == 0


async def test_an_exception_on_the_way_to_the_guard_stays_inside_and_blocks(
    make_config: Callable[..., RailsConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("canary")

    monkeypatch.setattr(ClientRequest, "from_messages", broken)
    llm = FakeLLMModel(responses=[ANSWER])
    with caplog.at_level(logging.WARNING):
        reply = await LLMRails(make_config(), llm=llm).generate_async(messages=user("canary"))
        async with IORails(make_config()) as engine:
            other = await engine.generate_async(messages=user("canary"))
    assert (reply["content"], other["content"]) == (UNAVAILABLE, BROKEN)
    assert llm.inference_count == 0
    assert "canary" not in caplog.text


async def test_a_configuration_that_was_never_prepared_is_blocked() -> None:
    outcome = await screen(None, lambda: ClientRequest(user("hello")))
    assert outcome.is_blocked
    assert outcome.failed


async def test_the_action_runs_here_where_an_actions_server_is_configured(
    make_config: Callable[..., RailsConfig],
) -> None:
    config = make_config(actions_server_url="http://127.0.0.1:1")
    reply = await LLMRails(config, llm=FakeLLMModel(responses=[ANSWER])).generate_async(
        messages=user("a plain threat"), options={"rails": ["input"]}
    )
    assert reply.response[0]["content"] == REFUSED


@pytest.mark.parametrize("content", [None, "", []])
async def test_a_message_without_content_ends_no_engine(make_config: Callable[..., RailsConfig], content: Any) -> None:
    rails = LLMRails(make_config(), llm=FakeLLMModel(responses=[ANSWER]))
    checked = await rails.check_async(user(content))
    assert checked.status.value != "blocked"
    async with IORails(make_config()) as engine:
        assert (await engine.check_async(user(content))).status.value == "passed"


async def test_a_sections_error_names_no_text_of_the_configuration(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(expert={"type": "openai", "base_url": "http://x/v1", "model": "m", "api_key": "canary"})
    with refused_start() as errors:
        LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[]))
    assert "canary" not in str(errors[0])
