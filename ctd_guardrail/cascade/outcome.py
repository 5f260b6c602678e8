"""The outcome of one unit while it is judged: scores, route, times and verdict. And the use of one request."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Timings, Verdict

__all__ = ["Outcome", "Request", "Usage"]


class Usage:
    """What a request has used so far.

    Attributes:
        scores: Delegation values of the user's turns that it judged, in order; +inf for one that goes to the expert
            because the probes cannot read it.
        calls: Units that go to the expert by the rule, or because the probes cannot read them.
        audits: Other units that go to the expert by the coin.
        by_rule: Those among them that the rule delegates.
    """

    __slots__ = ("audits", "by_rule", "calls", "scores")

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.calls = 0
        self.audits = 0
        self.by_rule = 0


class Request(NamedTuple):
    """What all units of one request have in common.

    Attributes:
        mode: Whether its verdict counts.
        principal: On whose behalf it is made; None: unknown.
        request_id: Its id at the door; None if the door has none.
        deadline: Time of the running event loop at which the decision is due; None: no deadline.
        take: Takes one of the calls of the expert that the request may make; False if none is left.
        take_audit: The same for calls that only the coin asks for.
        usage: What it has used so far.
    """

    mode: Mode
    principal: str | None
    request_id: str | None
    deadline: float | None
    take: Callable[[], bool]
    take_audit: Callable[[], bool]
    usage: Usage


class Outcome:
    """Collects scores, route and times on the way to a decision. Without a conclusion it blocks.

    Args:
        mode: Whether the decision will count.

    Attributes:
        route: Whom the unit was assigned to.
        p: Safety probe; None until it has run.
        p_expert: Expert; None until it has answered.
        verdict: The verdict so far.
        is_judged: Whether the verdict so far stands even if the audit that is under way fails.
    """

    __slots__ = (
        "_d",
        "_forward_ms",
        "_mode",
        "_on_failure",
        "_probe_end",
        "_queue_ms",
        "_reason",
        "_start",
        "is_judged",
        "p",
        "p_expert",
        "route",
        "verdict",
    )

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.route = Route.PROBE
        self.p: float | None = None
        self.p_expert: float | None = None
        self.is_judged = False
        self._d: float | None = None
        self._queue_ms = self._forward_ms = 0.0
        self._start = self._probe_end = perf_counter()
        self.verdict, self._reason = Verdict.BLOCK, Reason.INTERNAL_ERROR
        self._on_failure: OnFailure | None = None

    def add_times(self, queue_ms: float, forward_ms: float) -> None:
        """Set the times of the base model: the wait for the device, and the batch on it."""
        self._queue_ms, self._forward_ms = queue_ms, forward_ms

    def add_scores(self, p: float, d: float) -> None:
        """Set the scores of both probes."""
        self.p, self._d = p, d
        self._probe_end = perf_counter()

    def conclude(self, verdict: Verdict, reason: Reason) -> None:
        """Set the verdict."""
        self.verdict, self._reason = verdict, reason

    def fail(self, verdict: Verdict, reason: Reason, on_failure: OnFailure | None) -> None:
        """Set the verdict of a failure, and the setting that chose it; None if no setting applies."""
        self.conclude(verdict, reason)
        self._on_failure = on_failure

    def decision(self) -> Decision:
        """Return the decision."""
        end = perf_counter()
        probe_end = end if self.p is None and self.route is Route.PROBE else self._probe_end
        return Decision(
            verdict=self.verdict,
            route=self.route,
            reason=self._reason,
            p=self.p,
            d=self._d,
            p_expert=self.p_expert,
            mode=self._mode,
            timings=Timings(
                probe_ms=1000 * (probe_end - self._start),
                expert_ms=1000 * (end - probe_end),
                total_ms=1000 * (end - self._start),
                queue_ms=self._queue_ms,
                forward_ms=self._forward_ms,
            ),
            on_failure=self._on_failure,
        )
