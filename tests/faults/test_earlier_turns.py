"""Harm in any turn is seen, through the events that NeMo Guardrails hands over; a refused turn stops no later one."""

from collections.abc import Callable
from typing import Any

import pytest
from faulty.guard import word_guard

from ctd_guardrail.conversation import Context
from ctd_guardrail.decision import Verdict
from ctd_guardrail.nemo.messages import messages_from_events
from ctd_guardrail.refusals import DEFAULT_REFUSALS

Turns = list[tuple[str, str]]

# The turns up to the one that the host asks about, harm first.
SHAPES: dict[str, Callable[[str, str], Turns]] = {
    "answered": lambda harm, benign: [("user", harm), ("assistant", "Sure."), ("user", benign)],
    "two in a row": lambda harm, benign: [("user", harm), ("user", benign)],
    "buried": lambda harm, benign: [
        *[turn for _ in range(4) for turn in (("user", benign), ("assistant", "Fine."))],
        ("user", harm),
        ("assistant", "Go on."),
        *[turn for _ in range(4) for turn in (("user", f"{benign} again"), ("assistant", "Fine."))],
        ("user", benign),
    ],
    "tool result": lambda harm, benign: [
        ("user", benign),
        ("assistant", "Let me look that up."),
        ("tool", harm),
        ("assistant", "I see."),
        ("user", f"And then? {benign}"),
    ],
}


def events(turns: Turns) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for role, text in turns:
        if role == "user":
            made.append({"type": "UtteranceUserActionFinished", "final_transcript": text})
            made.append({"type": "UserMessage", "text": text})
        elif role == "tool":
            made.append({"type": "UserToolMessages", "tool_messages": [{"content": text}]})
        else:
            made.append({"type": "StartUtteranceBotAction", "script": text})
    return made


@pytest.mark.parametrize("context", Context)
async def test_an_earlier_harmful_turn_is_seen_in_every_shape(
    trials: Callable[..., int], record: Callable[..., None], context: Context
) -> None:
    each = trials(full=50, reduced=5)
    guard = word_guard(context=context)
    held = 0
    for shape in SHAPES.values():
        for i in range(each):
            turns = shape(f"harmful wish {i}", f"question {i}")
            messages = messages_from_events(events(turns))
            held += (await guard.check(messages)).verdict is Verdict.BLOCK
    record("earlier_turn", held, each * len(SHAPES))


@pytest.mark.parametrize("context", Context)
async def test_a_refused_turn_does_not_stop_a_later_benign_one(
    trials: Callable[..., int], record: Callable[..., None], context: Context
) -> None:
    total = trials(full=50, reduced=5)
    guard = word_guard(context=context, policy="words")
    held = 0
    for i in range(total):
        turns = [("user", f"harmful wish {i}"), ("assistant", DEFAULT_REFUSALS[0]), ("user", f"question {i}")]
        verdicts = []
        for asked in (turns[:1], turns):
            messages = messages_from_events(events(asked))
            verdicts.append((await guard.check(messages)).verdict)
        held += verdicts == [Verdict.BLOCK, Verdict.ALLOW]
    record("refused_turn", held, total)
