"""Requests at random, whatever the host makes of them: nothing of them reaches the main LLM without a verdict."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig

from ctd_guardrail.text.conversation import Context
from tests.nemo.doors.shapes import MARK
from tests.nemo.doors.stage import Stage, marking_guard

ROLES = ["user", "assistant", "tool", "system", "developer", "context", "event", "function", MARK, None, ["user"], 5]
LEAVES = [None, 1, True, "", MARK, "hello", b"x", 1.5, float("nan"), (1,), {1: 2}, {MARK: 1}, [MARK]]
PARTS = [{"type": "text", "text": MARK}, [{"type": "text", "text": MARK}], [{"type": "text", "text": 5}]]
KEYS = ["type", "text", "name", "content", "event", "data", "note", MARK, 1]
FIELDS = ["name", "tool_calls", "event", "metadata", "note", "tool_call_id", "id", "type"]
EVENTS = {
    "UserMessage": "text",
    "UtteranceUserActionFinished": "final_transcript",
    "BotToolCalls": "tool_calls",
    "UserToolMessages": "tool_messages",
    "SystemMessage": "content",
    "ContextUpdate": "data",
    "StartUtteranceBotAction": "script",
    MARK: "note",
}
DEPTH = 3


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def value(drawn: random.Random, depth: int = 0) -> Any:
    if depth == DEPTH or drawn.random() < 0.6:
        return drawn.choice([*LEAVES, *PARTS])
    inner = [value(drawn, depth + 1) for _ in range(drawn.randint(0, 3))]
    return inner if drawn.random() < 0.5 else {drawn.choice(KEYS): item for item in inner}


def messages(drawn: random.Random) -> list[Any]:
    made: list[Any] = []
    for _ in range(drawn.randint(0, 3)):
        made.append({"role": drawn.choice(ROLES), "content": value(drawn)})
        if drawn.random() < 0.6:
            made[-1][drawn.choice(FIELDS)] = value(drawn)
    return made + [{"role": "user", "content": "hello"}] * drawn.randint(0, 1)


def events(drawn: random.Random) -> list[Any]:
    return [{"type": kind, EVENTS[kind]: value(drawn)} for kind in drawn.choices(list(EVENTS), k=2)]


def asked(app: LLMRails, drawn: random.Random) -> Awaitable[Any]:
    """Send one request, at a door by chance."""

    async def stream(sent: list[Any]) -> list[Any]:
        return [chunk async for chunk in app.stream_async(messages=sent)]

    doors: list[Callable[[], Awaitable[Any]]] = [
        lambda: app.generate_async(messages=messages(drawn)),
        lambda: app.generate_async(messages=messages(drawn), options={"llm_params": {"x": value(drawn)}}),
        lambda: app.check_async(messages(drawn)),
        lambda: stream(messages(drawn)),
        lambda: app.generate_events_async(events(drawn)),
    ]
    return drawn.choice(doors)()


@pytest.mark.parametrize("context", list(Context))
@pytest.mark.parametrize("passthrough", [False, True])
async def test_no_random_request_reaches_the_main_llm_unread_and_no_error_is_the_guards(
    *,
    context: Context,
    passthrough: bool,
    monkeypatch: pytest.MonkeyPatch,
    shared_judge: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr("ctd_guardrail.nemo.setup.guard_for", lambda *_: marking_guard(context))
    stage = Stage(tmp_path, shared_judge, is_guarded=True)
    app = LLMRails(RailsConfig.from_path(str(stage.write("random", passthrough=passthrough))), llm=stage.llm)
    drawn = random.Random(f"{context} {passthrough}")
    for _ in range(2_500 if request.config.getoption("--faults") == "full" else 150):
        (error,) = await asyncio.gather(asked(app, drawn), return_exceptions=True)
        if isinstance(error, Exception):
            # What the host does not accept it answers with an exception of its own.
            *_, innermost = traceback.extract_tb(error.__traceback__)
            assert "ctd_guardrail" not in innermost.filename
    assert stage.calls, "no request was answered"
    assert not any(MARK in call for call in stage.calls)
