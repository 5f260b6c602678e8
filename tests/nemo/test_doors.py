"""Whatever a client sends, and at whatever door: no call of the main LLM carries what the guard refuses.

The requests are made by rule (doors/shapes.py) and go through the real host. A control without the rail shows that
they reach the main LLM at all. The same requests with a harmless text are answered as without the rail.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail.decision import Decision
from ctd_guardrail.text.conversation import Context
from tests.nemo.doors.doors import DOORS, Door
from tests.nemo.doors.page import Count, write_table
from tests.nemo.doors.shapes import MARK, Shape, shapes
from tests.nemo.doors.stage import Stage, marking_guard

BENIGN = "pleasant remark"
# With --faults=full a door gets every shape, else every so many, and others than its neighbour. Together that is more
# than 5,000 requests for the installed host, and a third of them for older ones.
EVERY = 21 if "CTD_TEST_HOST" in os.environ else 7


@dataclass
class Watched:
    """The guard of these tests, and the decisions of the request under way."""

    guard: Any
    decisions: list[Decision] = field(default_factory=list)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # NeMo's server sets the root logger to INFO, and tells every event of every request.
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def watched(door: Door, monkeypatch: pytest.MonkeyPatch) -> Watched:
    # Each context stands at every other door.
    watched = Watched(marking_guard(list(Context)[DOORS.index(door) % 2]))
    check = watched.guard.check

    async def noting(*values: Any, **options: Any) -> Decision:
        decision: Decision = await check(*values, **options)
        watched.decisions.append(decision)
        return decision

    watched.guard.check = noting
    for module in ("setup", "iorails"):
        monkeypatch.setattr(f"ctd_guardrail.nemo.{module}.guard_for", lambda *_: watched.guard)
    return watched


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Count]]:
    counts: dict[tuple[str, str], Count] = {}
    yield counts
    if request.config.getoption("--faults") == "full" and len(counts) == len(DOORS):
        write_table(counts)


@pytest.fixture
def chosen(request: pytest.FixtureRequest) -> Callable[[Door], list[Shape]]:
    """Return the shapes that a door gets."""

    def chosen(door: Door) -> list[Shape]:
        taken = [shape for shape in shapes() if door.takes(shape)]
        is_full = request.config.getoption("--faults") == "full"
        return taken if is_full else taken[DOORS.index(door) % EVERY :: EVERY]

    return chosen


async def replies(door: Door, stage: Stage, sent: list[Shape], note: Callable[[Shape], None]) -> list[str | None]:
    """Send requests, and return what came back; None where the host itself turned one away."""
    said: list[str | None] = []
    async with door.open(stage) as send:
        for shape in sent:
            reply: str | None = None
            # What the host does not accept it answers with an exception, and of many kinds.
            with suppress(Exception):
                reply = await send(shape)
            said.append(reply)
            note(shape)
    return said


@pytest.mark.usefixtures("installed_in_iorails")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.engine}: {door.name}".replace("`", ""))
async def test_no_call_of_the_main_llm_carries_what_the_guard_refuses(
    door: Door,
    watched: Watched,
    chosen: Callable[[Door], list[Shape]],
    counts: dict[tuple[str, str], Count],
    shared_judge: Any,
    tmp_path: Path,
) -> None:
    sent = chosen(door)
    bare = Stage(tmp_path, shared_judge, is_guarded=False)
    await replies(door, bare, sent, lambda _: None)
    assert not door.calls_main or any(MARK in call for call in bare.calls), "the requests do not test this door"

    stage = Stage(tmp_path, shared_judge, is_guarded=True)
    count, calls, unscreened = Count(), 0, []

    def note(shape: Shape) -> None:
        nonlocal calls
        if any(MARK in call for call in stage.calls[calls:]):
            unscreened.append(shape.name)
        if any(decision.is_blocking for decision in watched.decisions):
            count.refused += 1
        elif len(stage.calls) > calls:
            count.answered += 1
        else:
            count.neither += 1
        calls = len(stage.calls)
        watched.decisions.clear()

    await replies(door, stage, sent, note)
    assert not unscreened
    assert count.refused, "the guard was never asked"
    assert watched.guard.tally.snapshot().unscreened_calls == 0
    counts[door.engine, door.name] = count


@pytest.mark.usefixtures("installed_in_iorails")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.engine}: {door.name}".replace("`", ""))
async def test_a_harmless_request_is_answered_as_without_the_guard(
    door: Door,
    watched: Watched,
    chosen: Callable[[Door], list[Shape]],
    shared_judge: Any,
    tmp_path: Path,
) -> None:
    sent = [shape.said(BENIGN) for shape in chosen(door) if not shape.asks_for_more()]
    bare = await replies(door, Stage(tmp_path, shared_judge, is_guarded=False), sent, lambda _: None)
    guarded = await replies(door, Stage(tmp_path, shared_judge, is_guarded=True), sent, lambda _: None)
    named = [(shape.name, one, other) for shape, one, other in zip(sent, bare, guarded, strict=True) if one != other]
    assert not named
    assert watched.decisions, "the guard was never asked"
