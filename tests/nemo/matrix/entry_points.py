"""What is asked at every entry point, what is expected there, and the table of all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.nemo.matrix.rig import Rig

__all__ = ["CASES", "ENTRY_POINTS", "Case", "Cell", "EntryPoint", "MainLLM", "Seen", "entry_point", "markdown"]


class Seen(StrEnum):
    """What the client gets."""

    ANSWER = "answer"
    PASSED = "passed"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


class MainLLM(StrEnum):
    """When the main LLM is called."""

    AFTER = "once, where allowed"
    NEVER = "never"
    BESIDE = "beside the rail; its answer is held back"


@dataclass(frozen=True, slots=True)
class Case:
    """One input, and what the guard makes of it.

    Attributes:
        name: In a few words.
        text: The user's message.
        seen: What a client of a chat gets.
        expert_calls: How often the expert is asked.
        expert_is_down: Whether it answers with HTTP 503.
    """

    name: str
    text: str
    seen: Seen
    expert_calls: int = 0
    expert_is_down: bool = False


# The outage comes first: a judgement of content may be remembered, a failure never.
CASES: Final = (
    Case("expert down", "an odd question", Seen.UNAVAILABLE, expert_calls=1, expert_is_down=True),
    Case("allowed by the probe", "a plain question", Seen.ANSWER),
    Case("refused by the probe", "a plain threat", Seen.REFUSED),
    Case("allowed by the expert", "an odd question", Seen.ANSWER, expert_calls=1),
    Case("refused by the expert", "an odd and harmful wish", Seen.REFUSED, expert_calls=1),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one case did at one entry point."""

    seen: Seen
    expert_calls: int
    main_calls: int


Ask = Callable[[str], Awaitable[Seen]]
"""Sends one message as a conversation of its own, and says what came back."""

Door = Callable[[Rig], AbstractAsyncContextManager[Ask]]


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One row of the matrix.

    Attributes:
        name: In Markdown.
        engine: The engine of NeMo Guardrails behind it.
        main_llm: When the main LLM is called.
        allowed: What the client sees where the guard allows.
        broken: What the client sees where the guard cannot do its work.
        open: Opens it.
    """

    name: str
    engine: str
    main_llm: MainLLM
    allowed: Seen
    broken: Seen
    open: Door

    def expected(self, case: Case, cell: Cell) -> Cell:
        """Return what the matrix promises for a case; `cell`, where it keeps a promise with room in it."""
        seen = {Seen.ANSWER: self.allowed, Seen.UNAVAILABLE: self.broken}.get(case.seen, case.seen)
        main_calls = int(case.seen is Seen.ANSWER and self.main_llm is not MainLLM.NEVER)
        if self.main_llm is MainLLM.BESIDE:
            # A call that the verdict cancelled may have been sent, and may be counted late.
            main_calls = max(main_calls, cell.main_calls)
        return Cell(seen, case.expert_calls, main_calls)


ENTRY_POINTS: Final[list[EntryPoint]] = []


def entry_point(
    name: str,
    engine: str,
    *,
    main_llm: MainLLM = MainLLM.AFTER,
    allowed: Seen = Seen.ANSWER,
    broken: Seen = Seen.UNAVAILABLE,
) -> Callable[[Callable[[Rig], AsyncIterator[Ask]]], Door]:
    """Put a generator that yields an :data:`Ask` into the matrix, as :class:`EntryPoint` describes."""

    def register(function: Callable[[Rig], AsyncIterator[Ask]]) -> Door:
        door = asynccontextmanager(function)
        ENTRY_POINTS.append(EntryPoint(name, engine, main_llm, allowed, broken, door))
        return door

    return register


def markdown() -> str:
    """Return the table of the documentation."""
    rows = [
        ["engine", "entry point", "allowed", "refused", "guard broken", "main LLM is called"],
        ["---"] * 6,
        *([p.engine, p.name, p.allowed, Seen.REFUSED, p.broken, p.main_llm] for p in ENTRY_POINTS),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
