"""The rail in a Colang 2.x app: same cascade, same words, other events."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from tests.nemo.apps import guard_of
from tests.nemo.words import ANSWER, REFUSED, UNAVAILABLE

MAIN = """
import core
import guardrails
import ctd_guardrail.nemo

flow main
  activate answering

flow answering
  user said something
  bot say "the main LLM's answer"

flow input rails $input_text
  ctd check input
"""


@pytest.fixture
def make_app(make_rail_folder: Callable[..., Path]) -> Callable[..., LLMRails]:
    def make(*, main: str = MAIN, config: dict[str, Any] | None = None, **changes: Any) -> LLMRails:
        version = {"colang_version": "2.x", "import_paths": [], "rails": {}}
        folder = make_rail_folder(config=version | (config or {}), **changes)
        (folder / "main.co").write_text(main)
        return LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=[]))

    return make


def user(*texts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def seen_by(app: LLMRails) -> list[dict[str, Any]]:
    """Return the list that will hold the messages of the last check."""
    seen: list[dict[str, Any]] = []
    guard = guard_of(app)
    check = guard.check

    async def spy(messages: Any, *_: Any, **options: Any) -> Any:
        seen[:] = messages
        return await check(messages, **options)

    guard.check = spy
    return seen


@pytest.mark.parametrize(
    ("text", "answer", "expert_calls"),
    [
        ("a plain question", ANSWER, 0),
        ("a plain threat", REFUSED, 0),
        ("an odd question", ANSWER, 1),
        ("an odd and harmful wish", REFUSED, 1),
    ],
)
async def test_verdicts_reach_the_chat(
    make_app: Callable[..., LLMRails], judge: Any, text: str, answer: str, expert_calls: int
) -> None:
    reply = await make_app().generate_async(messages=user(text))
    assert reply["content"] == answer
    assert judge.calls == expert_calls


async def test_a_broken_guard_is_told_apart_from_a_refusal(make_app: Callable[..., LLMRails], judge: Any) -> None:
    judge.is_down = True
    reply = await make_app().generate_async(messages=user("an odd question"))
    assert reply["content"] == UNAVAILABLE


async def test_exceptions_name_a_refusal_and_an_outage_differently(
    make_app: Callable[..., LLMRails], judge: Any
) -> None:
    app = make_app(config={"enable_rails_exceptions": True})
    refused = await app.generate_async(messages=user("a plain threat"))
    judge.is_down = True
    broken = await app.generate_async(messages=user("an odd question"))
    assert "CtdCheckInputException" in [event["type"] for event in refused["events"]]
    assert "CtdGuardUnavailableException" in [event["type"] for event in broken["events"]]


async def test_two_turns_in_a_row_are_both_seen(make_app: Callable[..., LLMRails]) -> None:
    seen = seen_by(app := make_app())
    await app.generate_async(messages=user("first", "second"))
    assert seen == user("first", "second")


async def test_the_turns_of_a_running_conversation_are_seen(make_app: Callable[..., LLMRails]) -> None:
    seen = seen_by(app := make_app())
    state: Any = None
    for text in ("a plain question", "a plain question again"):
        said = {"type": "UtteranceUserActionFinished", "final_transcript": text}
        output, state = await app.process_events_async([said], state)
        (answer,) = [event for event in output if event["type"] == "StartUtteranceBotAction"]
        spoken = {"action_uid": answer["action_uid"], "final_script": answer["script"], "is_success": True}
        _, state = await app.process_events_async([{"type": "UtteranceBotActionFinished", **spoken}], state)
    assert seen == [
        *user("a plain question"),
        {"role": "assistant", "content": ANSWER},
        *user("a plain question again"),
    ]


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {"url": "data:"}}], 7])
async def test_content_that_is_not_text_does_not_pass_unread(make_app: Callable[..., LLMRails], content: Any) -> None:
    reply = await make_app().generate_async(messages=user(content))
    assert reply["content"] == UNAVAILABLE


async def test_many_at_once_on_one_loop(make_app: Callable[..., LLMRails]) -> None:
    app = make_app()
    texts = ["a plain question", "a plain threat"] * 4
    replies = await asyncio.gather(*(app.generate_async(messages=user(text)) for text in texts))
    assert [reply["content"] for reply in replies] == [ANSWER, REFUSED] * 4


async def test_an_apps_own_words_for_a_refusal_win(make_app: Callable[..., LLMRails]) -> None:
    words = '\n@override\nflow bot refuse to respond\n  bot say "Not here."\n'
    reply = await make_app(main=MAIN + words).generate_async(messages=user("a plain threat"))
    assert reply["content"] == "Not here."
