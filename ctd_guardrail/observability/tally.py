"""Counts of a guard's decisions and of its calls of the expert."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from ctd_guardrail.decision import Mode, OnFailure, Reason, Route, Verdict
from ctd_guardrail.observability.events import Decided, Event, ExpertCalled, Recalled, Routed, Served, UnscreenedCall

__all__ = ["Tally", "TallySnapshot"]


@dataclass(frozen=True, slots=True)
class TallySnapshot:
    """Counts since start.

    Attributes:
        decisions: Number of decisions for each (verdict, route, reason) that occurred.
        expert_attempts: Calls that were made to the expert, failed ones included.
        expert_tokens: Tokens of these calls, estimated from the text if the expert does not report them.
        bypasses: Number of decisions for each (reason, failure policy, verdict) in which a failure policy other than
            ``block`` took the guard's place.
        recalled: Turns that had been judged before. They are among the decisions only if an audit judged them again.
        shadow: Decisions whose verdict did not count.
        unscreened_calls: Calls of the main LLM for which the guard had given no verdict.
        requests: Requests, each with one new turn; a request whose turn is recalled is one too.
        calls: Units of these requests that went to the expert. ``calls / requests`` is what a budget bounds.
    """

    decisions: dict[tuple[Verdict, Route, Reason], int]
    expert_attempts: int
    expert_tokens: int
    bypasses: dict[tuple[Reason, OnFailure, Verdict], int]
    recalled: int = 0
    shadow: int = 0
    unscreened_calls: int = 0
    requests: int = 0
    calls: int = 0

    @property
    def total(self) -> int:
        """Number of decisions."""
        return sum(self.decisions.values())

    @property
    def delegated(self) -> int:
        """Number of inputs that were assigned to the expert."""
        return sum(count for (_, route, _), count in self.decisions.items() if route is Route.EXPERT)

    @property
    def failures(self) -> int:
        """Number of decisions that the failure policy made."""
        return sum(count for (_, _, reason), count in self.decisions.items() if reason.is_failure)


class Tally:
    """Thread-safe counters of one guard: a sink that is exact at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decisions: Counter[tuple[Verdict, Route, Reason]] = Counter()
        self._bypasses: Counter[tuple[Reason, OnFailure, Verdict]] = Counter()
        self._expert_attempts = self._expert_tokens = self._recalled = self._shadow = self._unscreened_calls = 0
        self._requests = self._calls = 0

    def __call__(self, event: Event) -> None:
        """Count an event, whatever its origin."""
        match event:
            case Routed():
                pass  # each unit has one: it takes no lock and is compared with nothing else
            case Served():
                with self._lock:
                    self._requests += 1
                    self._calls += event.calls
            case Decided():
                decision = event.decision
                with self._lock:
                    self._decisions[decision.verdict, decision.route, decision.reason] += 1
                    self._shadow += decision.mode is Mode.SHADOW
                    if decision.on_failure is not None and decision.is_bypass:
                        self._bypasses[decision.reason, decision.on_failure, decision.verdict] += 1
            case ExpertCalled():
                with self._lock:  # a budget pays for each call, answered or not
                    self._expert_attempts += event.attempts
                    self._expert_tokens += event.tokens
            case Recalled():
                with self._lock:
                    self._recalled += 1
            case UnscreenedCall():
                with self._lock:
                    self._unscreened_calls += 1

    def snapshot(self) -> TallySnapshot:
        """Return the counts so far."""
        with self._lock:
            return TallySnapshot(
                decisions=dict(self._decisions),
                expert_attempts=self._expert_attempts,
                expert_tokens=self._expert_tokens,
                bypasses=dict(self._bypasses),
                recalled=self._recalled,
                shadow=self._shadow,
                unscreened_calls=self._unscreened_calls,
                requests=self._requests,
                calls=self._calls,
            )
