"""Counts of what the cascade decided, for operators and for the budget."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Verdict
from ctd_guardrail.observability.observer import Observer

__all__ = ["Tally", "TallySnapshot"]


@dataclass(frozen=True, slots=True)
class TallySnapshot:
    """Counts since start.

    Attributes:
        decisions: Number of decisions for each (verdict, route, reason) that occurred.
        expert_attempts: Calls that were made to the expert, failed ones included.
        expert_tokens: Tokens of these calls, estimated from the text where the expert does not say.
        bypasses: Number of decisions for each (reason, failure policy, verdict) in which a failure policy other than
            ``block`` took the guard's place.
        recalled: Turns that had been judged before; they are not among the decisions.
        shadow: Decisions whose verdict did not count.
        unscreened_calls: Calls of the main LLM for which the guard had given no verdict.
    """

    decisions: dict[tuple[Verdict, Route, Reason], int]
    expert_attempts: int
    expert_tokens: int
    bypasses: dict[tuple[Reason, OnFailure, Verdict], int]
    recalled: int = 0
    shadow: int = 0
    unscreened_calls: int = 0

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
    """Thread-safe counters of one cascade.

    Args:
        observer: Is told of all that is counted; None: nobody is.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self._totals = _Totals()
        self._observer = observer

    def told_to(self, observer: Observer | None) -> Tally:
        """Return a tally that adds to these very counters, and tells somebody else."""
        told = Tally(observer)
        told._totals = self._totals
        return told

    def count(self, decision: Decision, unit: str | None = None) -> None:
        """Count a decision.

        Args:
            decision: The decision.
            unit: Digest of what was judged; None where that could not be read.
        """
        with self._totals.lock:
            self._totals.decisions[decision.verdict, decision.route, decision.reason] += 1
            self._totals.shadow += decision.mode is Mode.SHADOW
            if decision.is_bypass and decision.on_failure is not None:
                self._totals.bypasses[decision.reason, decision.on_failure, decision.verdict] += 1
        if self._observer is not None:
            self._observer.decided(decision, unit)

    def count_routed(self, d: float, *, delegated: bool, audited: bool) -> None:
        """Tell the observer of an input that the probes have scored; see :meth:`Observer.routed`."""
        if self._observer is not None:
            self._observer.routed(d, delegated=delegated, audited=audited)

    def count_audit(self, *, missed: bool) -> None:
        """Tell the observer how an audit came out; see :meth:`Observer.audited`."""
        if self._observer is not None:
            self._observer.audited(missed=missed)

    def count_expert_attempts(self, attempts: int, tokens: int) -> None:
        """Count calls to the expert and their tokens: a budget pays for each of them, answered or not."""
        with self._totals.lock:
            self._totals.expert_attempts += attempts
            self._totals.expert_tokens += tokens
        if self._observer is not None:
            self._observer.asked(attempts, tokens)

    def count_recalled(self) -> None:
        """Count a turn that was judged before."""
        with self._totals.lock:
            self._totals.recalled += 1
        if self._observer is not None:
            self._observer.recalled()

    def count_unscreened_call(self, door: str) -> None:
        """Count a call of the main LLM for which the guard had given no verdict.

        Args:
            door: Where the call was made: a word of :data:`ctd_guardrail.observability.metrics.DOORS`.
        """
        with self._totals.lock:
            self._totals.unscreened_calls += 1
        if self._observer is not None:
            self._observer.unscreened(door)

    def snapshot(self) -> TallySnapshot:
        """Return the counts so far."""
        with self._totals.lock:
            return TallySnapshot(
                decisions=dict(self._totals.decisions),
                expert_attempts=self._totals.expert_attempts,
                expert_tokens=self._totals.expert_tokens,
                bypasses=dict(self._totals.bypasses),
                recalled=self._totals.recalled,
                shadow=self._totals.shadow,
                unscreened_calls=self._totals.unscreened_calls,
            )


class _Totals:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.decisions: Counter[tuple[Verdict, Route, Reason]] = Counter()
        self.bypasses: Counter[tuple[Reason, OnFailure, Verdict]] = Counter()
        self.expert_attempts = 0
        self.expert_tokens = 0
        self.recalled = 0
        self.shadow = 0
        self.unscreened_calls = 0
