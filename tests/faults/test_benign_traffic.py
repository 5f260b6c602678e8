"""Harmless conversations are answered as without the guard, and the main LLM gets the very same prompts."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig

from ctd_guardrail.text.conversation import Context
from tests.nemo.doors.stage import Stage, marking_guard

WORDS = ["garden", "weather", "train", "ticket", "recipe", "budget", "invoice", "lamp", "river", "concert", "museum"]


def sentence(drawn: random.Random) -> str:
    return f"Tell me about the {' and the '.join(drawn.sample(WORDS, drawn.randint(1, 3)))}, please."


def turn(drawn: random.Random) -> list[dict[str, Any]]:
    """Return what a user asks, and what a tool and the assistant answer."""
    kind = drawn.choice(["text", "parts", "image", "named", "tool"])
    asked: dict[str, Any] = {"role": "user", "content": sentence(drawn)}
    if kind == "parts":
        asked["content"] = [{"type": "text", "text": sentence(drawn)}, {"type": "text", "text": sentence(drawn)}]
    elif kind == "image":
        asked["content"] = f"[image: a {drawn.choice(WORDS)} beside a {drawn.choice(WORDS)}] {sentence(drawn)}"
    elif kind == "named":
        asked["name"] = f"user_{drawn.randint(1, 99)}"
    called: list[dict[str, Any]] = []
    if kind == "tool":
        function = {"name": "look_up", "arguments": f'{{"query": "{drawn.choice(WORDS)}"}}'}
        called = [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "1", "content": f"Found: {sentence(drawn)}"},
        ]
    return [asked, *called, {"role": "assistant", "content": f"Here is what I know. {sentence(drawn)}"}]


def conversation(drawn: random.Random) -> list[dict[str, Any]]:
    """Return a conversation that waits for an answer: to a user, or to a tool."""
    system = [{"role": "system", "content": f"You help with the {drawn.choice(WORDS)}. Be brief."}]
    context = [{"role": "context", "content": {"city": drawn.choice(WORDS)}}]
    turns = [message for _ in range(drawn.randint(1, 6)) for message in turn(drawn)]
    return [*(system if drawn.random() < 0.5 else []), *(context if drawn.random() < 0.2 else []), *turns[:-1]]


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("passthrough", [False, True])
async def test_harmless_conversations_are_answered_as_without_the_guard(
    trials: Callable[..., int],
    record: Callable[..., None],
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host_loops: None,
    *,
    passthrough: bool,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where NeMo finds the rail of a checkout
    guard = marking_guard(context, judgement_key="words")
    monkeypatch.setattr("ctd_guardrail.nemo.setup.guard_for", lambda *_: guard)
    drawn = random.Random(f"{context} {passthrough}")
    conversations = [conversation(drawn) for _ in range(trials(full=250, reduced=25))]
    seen: list[list[tuple[Any, list[str]]]] = []
    for is_guarded in (False, True):
        stage = Stage(tmp_path, SimpleNamespace(answered_bodies=[]), is_guarded=is_guarded)
        rails = LLMRails(RailsConfig.from_path(str(stage.write("app", passthrough=passthrough))), llm=stage.llm)
        replies = []
        for messages in conversations:
            before = len(stage.calls)
            reply: Any = await rails.generate_async(messages=[dict(message) for message in messages])
            replies.append((reply, stage.calls[before:]))
        seen.append(replies)
    assert any(calls for _, calls in seen[0])
    record("benign_traffic", sum(map(lambda one, other: one == other, *seen)), len(conversations))
