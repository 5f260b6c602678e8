"""All monitors of one policy in service. Each input updates all of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.audit_floor import AuditFloor
from ctd_guardrail.monitors.rate_alarm import RateAlarm
from ctd_guardrail.monitors.rate_band import DelegationCount
from ctd_guardrail.monitors.recent_scores import RecentScores
from ctd_guardrail.monitors.score_drift import ScoreDriftAlarm
from ctd_guardrail.monitors.state import SavedState, State

__all__ = ["MonitorSettings", "Monitors"]

_FIELDS: Final = ("count", "rate", "drift", "audit", "recent")


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """The settings of the monitors.

    Attributes:
        alpha: The budget, in (0, 1), audits included: the rate alarm compares the realised rate with it.
        delta: Probability in (0, 1) of any false alarm, ever, for each alarm. Also the probability that the
            audit's interval is ever wrong.
        audit_share: Share of the inputs that is audited, in [0, 1).
        keep_scores: Number of recent scores that are kept, at least 1.
    """

    alpha: float
    delta: float = 0.05
    audit_share: float = 0.0
    keep_scores: int = 10_000


class Monitors:
    """Rate alarm, score drift alarm, audit floor and recent scores. Not thread-safe.

    Args:
        settings: The settings.
        scores: Delegation values of the calibration inputs, shape [n].

    Attributes:
        count: The delegated share of the traffic.
        rate: The alarm on a share above alpha.
        drift: The alarm on a change of the scores.
        audit: The estimate of missed harm; None without audits.
        recent: The newest scores.

    Raises:
        ConfigError: A setting lies outside its range.
        DataError: There are no scores, or one is NaN or infinite.
    """

    def __init__(self, settings: MonitorSettings, scores: FloatArray) -> None:
        self._settings = settings
        self.count = DelegationCount()
        self.rate = RateAlarm(settings.alpha, delta=settings.delta)
        # Unpredictable, so that a sender cannot adapt inputs to the random numbers.
        self.drift = ScoreDriftAlarm(scores, delta=settings.delta, seed=secrets.randbits(63))
        self.audit = AuditFloor(settings.audit_share, delta=settings.delta) if settings.audit_share else None
        self.recent = RecentScores(settings.keep_scores)

    def update(self, d: float, *, delegated: bool | None, audited: bool = False) -> None:
        """Take one input.

        Args:
            d: Its delegation value.
            delegated: Whether it goes to the expert, by the rule or by the audit's coin; None for a request under
                another budget than the configured one, which does not count towards the rate.
            audited: Whether the coin selected it for an audit; a call of :meth:`audited` follows.

        Raises:
            DataError: d is NaN or infinite.
        """
        self.drift.update(d)
        self.recent.update(d)
        if delegated is not None:
            self.count.update(delegated=delegated)
            self.rate.update(delegated=delegated)
            if self.audit is not None and not audited:
                self.audit.update(missed=None)

    def audited(self, *, missed: bool) -> None:
        """Take the outcome of an audit.

        Args:
            missed: Whether the expert calls the cascade's own verdict wrong, or gave no answer.
        """
        if self.audit is not None:
            self.audit.update(missed=missed)

    def alarms(self) -> dict[str, int | None]:
        """Return, for each alarm, the number of the input at which it was raised, or None."""
        return {
            "rate": self.rate.alarmed_at,
            "score_drift": self.drift.conformal.alarmed_at,
            "score_exceedance": self.drift.exceedance.alarmed_at,
        }

    def evidence(self) -> dict[str, float]:
        """Return, for each alarm, the evidence so far: 1 at the start, 1 / its delta at the alarm."""
        return {
            "rate": self.rate.evidence,
            "score_drift": self.drift.conformal.evidence,
            "score_exceedance": self.drift.exceedance.evidence,
        }

    @property
    def delta(self) -> float:
        """Probability of any false alarm, ever, for each alarm."""
        return self._settings.delta

    def state(self) -> State:
        """Return everything that the next update depends on, except the calibration scores, as plain JSON values."""
        return {
            "count": self.count.state(),
            "rate": self.rate.state(),
            "drift": self.drift.state(),
            "audit": None if self.audit is None else self.audit.state(),
            "recent": self.recent.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: MonitorSettings, scores: FloatArray) -> Self:
        """Return the monitors that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            settings: The settings that they were made with; another ``keep_scores`` is taken over.
            scores: The calibration scores that they were made with.

        Raises:
            DataError: The state is not one of monitors with these settings on these scores.
        """
        saved = SavedState(state, "monitors", _FIELDS)
        monitors = cls(settings, scores)
        monitors.count = DelegationCount.from_state(saved.nested("count"))
        monitors.rate = RateAlarm.from_state(saved.nested("rate"))
        monitors.drift = ScoreDriftAlarm.from_state(saved.nested("drift"), scores)
        if monitors.audit is not None:
            monitors.audit = AuditFloor.from_state(saved.nested("audit"))
        monitors.recent = RecentScores.from_state(saved.nested("recent"), capacity=settings.keep_scores)
        kept = (monitors.rate.alpha, monitors.rate.delta, monitors.audit and monitors.audit.share)
        if kept != (settings.alpha, settings.delta, settings.audit_share or None):
            raise DataError("saved state of the monitors is of other settings", hint="Start new monitors")
        return monitors
