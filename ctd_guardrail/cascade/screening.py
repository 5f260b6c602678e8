"""What is known so far about the unit under screening, and how an error becomes a reason."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Final

from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Timings, Verdict
from ctd_guardrail.errors import (
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertVerdictError,
    InputError,
    OverloadedError,
    OverlongError,
)

__all__ = ["Request", "Screening", "reason_of"]

_REASONS: Final[tuple[tuple[type[BaseException], Reason], ...]] = (
    (BreakerOpenError, Reason.BREAKER_OPEN),
    (CapStoreError, Reason.CAP_UNAVAILABLE),
    (ExpertCapError, Reason.CAP_EXHAUSTED),
    (ExpertDisabledError, Reason.EXPERT_DISABLED),
    (ExpertOverloadedError, Reason.EXPERT_OVERLOADED),
    (ExpertTimeoutError, Reason.EXPERT_TIMEOUT),
    (ExpertVerdictError, Reason.EXPERT_BAD_VERDICT),
    (ExpertError, Reason.EXPERT_UNAVAILABLE),
    (OverlongError, Reason.OVERLONG),
    (InputError, Reason.NON_TEXT),
    (OverloadedError, Reason.OVERLOADED),
    (ActivationUnavailableError, Reason.ENGINE_UNAVAILABLE),
)


def reason_of(error: BaseException) -> Reason:
    """Return why a guard that raised this could not do its work."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.INTERNAL_ERROR)


@dataclass(frozen=True, slots=True)
class Request:
    """What holds for all units of one request.

    Attributes:
        principal: On whose behalf it is made; None: unknown.
        deadline: Time of the running event loop at which the guard's answer is due; None: never.
        mode: Whether its verdict counts.
    """

    principal: str | None
    deadline: float | None
    mode: Mode


class Screening:
    """Collects scores, route and times on the way to a decision.

    Args:
        mode: Whether the decision will count.

    Attributes:
        route: Whom the unit was assigned to.
        p: Safety probe; None as long as it has not run.
        p_expert: Expert; None as long as it has not answered.
        is_judged: Whether the verdict so far stands, whatever becomes of the audit that is under way.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.route = Route.PROBE
        self.p: float | None = None
        self.p_expert: float | None = None
        self.is_judged = False
        self._d: float | None = None
        self._queue_ms = self._forward_ms = 0.0
        self._start = self._probe_end = perf_counter()
        # Closed until something says otherwise.
        self._verdict, self._reason = Verdict.BLOCK, Reason.INTERNAL_ERROR
        self._on_failure: OnFailure | None = None

    def waited(self, queue_ms: float, forward_ms: float) -> None:
        """Note what the base model took: the wait for the device, and the batch on it."""
        self._queue_ms, self._forward_ms = queue_ms, forward_ms

    def probed(self, p: float, d: float) -> None:
        """Note both probes' scores."""
        self.p, self._d = p, d
        self._probe_end = perf_counter()

    def conclude(self, verdict: Verdict, reason: Reason) -> None:
        """Note the verdict."""
        self._verdict, self._reason = verdict, reason

    def fail(self, verdict: Verdict, reason: Reason, policy: OnFailure | None) -> None:
        """Note the verdict of the failure policy, and which it was; None: it had no say."""
        self.conclude(verdict, reason)
        self._on_failure = policy

    @property
    def verdict(self) -> Verdict:
        """The verdict so far."""
        return self._verdict

    def decision(self) -> Decision:
        """Return the decision."""
        end = perf_counter()
        probe_end = end if self.p is None and self.route is Route.PROBE else self._probe_end
        return Decision(
            verdict=self._verdict,
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
