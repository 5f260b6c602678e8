"""What the duration of an answer tells its sender: the route, and nothing else.

Durations are those of the event loop's clock, which here only moves by waits. So the test measures what the guard
waits for; the processor's own work is no part of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.decision import Decision, Route, Verdict
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.clocks import run_in_virtual_time
from tests.support.word_guard import WordJudge, WordReader, word_guard

FORWARD_S = 0.001
TEXTS = ("a plain question", "a harmful wish", "a doubtful question", "a doubtful and harmful wish")


class TimedReader(WordReader):
    """A base model that takes the same time for every input."""

    async def run(self, conversation: Conversation, head: Any) -> Scored:
        await asyncio.sleep(FORWARD_S)
        return await super().run(conversation, head)


class SlowJudge(WordJudge):
    """An expert of 2 to 12 ms, nearer than any endpoint in use, that notes how long each answer took."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(0)
        self.last_s = 0.0

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.last_s = self._rng.uniform(0.002, 0.012)
        await asyncio.sleep(self.last_s)
        return await super().score(conversation)


class LeakyGuard:
    """A guard with a leak: it takes a millisecond longer to refuse."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard

    async def check(self, messages: list[dict[str, Any]]) -> Decision:
        decision: Decision = await self._guard.check(messages)
        if decision.verdict is Verdict.BLOCK:
            await asyncio.sleep(0.001)
        return decision


@dataclass
class Measured:
    """Durations by route and verdict, and the number of those that the parts of the guard account for."""

    durations: dict[tuple[Route, Verdict], list[float]] = field(default_factory=dict)
    accounted: int = 0

    def of(self, route: Route) -> list[float]:
        return [seconds for (each, _), all_of_it in self.durations.items() if each is route for seconds in all_of_it]

    def auc_of_route(self) -> float:
        return auc(self.of(Route.EXPERT), self.of(Route.PROBE))

    def auc_of_verdict(self, route: Route) -> float:
        return auc(self.durations[route, Verdict.BLOCK], self.durations[route, Verdict.ALLOW])


def auc(higher: list[float], lower: list[float]) -> float:
    """Return P(a value of the first > a value of the second), ties by half."""
    # Equal waits differ by the rounding of the clock.
    pairs = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a in higher for b in lower]
    return sum(pairs) / len(pairs)


async def measure(guard: Any, judge: SlowJudge, total: int) -> Measured:
    measured = Measured()
    now = asyncio.get_running_loop().time
    for i in range(total):
        start = now()
        decision = await guard.check([{"role": "user", "content": f"{TEXTS[i % 4]} {i}"}])
        seconds = now() - start
        expected = FORWARD_S + (judge.last_s if decision.route is Route.EXPERT else 0.0)
        measured.accounted += abs(seconds - expected) < 1e-9
        measured.durations.setdefault((decision.route, decision.verdict), []).append(seconds)
    return measured


def guard_and_judge() -> tuple[Any, SlowJudge]:
    judge = SlowJudge()
    return word_guard(judge=judge, reader=TimedReader()), judge


def test_the_duration_tells_the_route_and_not_the_verdict(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    total = trials(full=1_000, reduced=60)
    measured: Measured = run_in_virtual_time(measure(*guard_and_judge(), total))
    assert len(measured.durations) == 4  # both verdicts on both routes
    probe, expert = measured.auc_of_verdict(Route.PROBE), measured.auc_of_verdict(Route.EXPERT)
    record(
        "timing_channel",
        measured.accounted,
        total,
        figure=f"AUC of the route {measured.auc_of_route():.3f}, of the probe's verdict {probe:.3f}, "
        f"of the expert's {expert:.3f}",
    )


def test_a_guard_that_leaks_its_verdict_is_found() -> None:
    guard, judge = guard_and_judge()
    measured: Measured = run_in_virtual_time(measure(LeakyGuard(guard), judge, 60))
    assert measured.accounted == 30
    assert measured.auc_of_verdict(Route.PROBE) == pytest.approx(1.0)
