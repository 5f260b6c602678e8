"""Harm in any turn of a request to NeMo Guardrails is seen; a turn that was refused stops no later one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig

from ctd_guardrail.text.conversation import Context
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS
from tests.nemo.doors.stage import ANSWER, Stage, marking_guard

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


class App:
    """A real app around a guard that refuses what holds the word `harmful`.

    Attributes:
        stage: Its main LLM.
    """

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder, SimpleNamespace(answered_bodies=[]), is_guarded=True)
        self._rails = LLMRails(RailsConfig.from_path(str(self.stage.write("app"))), llm=self.stage.llm)

    async def say(self, turns: Turns) -> str:
        reply: Any = await self._rails.generate_async(messages=[{"role": r, "content": text} for r, text in turns])
        return str(reply["content"])


@pytest.fixture
async def app(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_loops: None) -> App:
    monkeypatch.chdir(Path(__file__).parents[2])  # where NeMo finds the rail of a checkout
    guard = marking_guard(context, judgement_key="words")
    monkeypatch.setattr("ctd_guardrail.nemo.setup.guard_for", lambda *_: guard)
    return App(tmp_path)


@pytest.mark.parametrize("context", Context)
async def test_an_earlier_harmful_turn_is_seen_in_every_shape(
    trials: Callable[..., int], record: Callable[..., None], app: App
) -> None:
    each = trials(full=50, reduced=5)
    held = 0
    for shape in SHAPES.values():
        for i in range(each):
            held += await app.say(shape(f"harmful wish {i}", f"question {i}")) == DEFAULT_REFUSALS[0]
    assert not app.stage.calls, "the main LLM was asked"
    record("earlier_turn", held, each * len(SHAPES))


@pytest.mark.parametrize("context", Context)
async def test_a_refused_turn_does_not_stop_a_later_benign_one(
    trials: Callable[..., int], record: Callable[..., None], app: App
) -> None:
    total = trials(full=50, reduced=5)
    held = 0
    for i in range(total):
        turns = [("user", f"harmful wish {i}")]
        refusal = await app.say(turns)
        turns += [("assistant", refusal), ("user", f"question {i}")]
        held += (refusal, await app.say(turns)) == (DEFAULT_REFUSALS[0], ANSWER)
    record("refused_turn", held, total)
