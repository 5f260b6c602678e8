"""All monitors of one policy in service. Each request updates all of them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.audit_floor import AuditFloor
from ctd_guardrail.monitors.call_rate import CallRates
from ctd_guardrail.monitors.conversations import ClosedConversation, OpenConversations, Request
from ctd_guardrail.monitors.rate_alarm import RateAlarm
from ctd_guardrail.monitors.rate_limit import LimitKind, RateLimit, reference_scores
from ctd_guardrail.monitors.recent_scores import RecentScores
from ctd_guardrail.monitors.score_drift import ScoreDriftAlarm
from ctd_guardrail.monitors.state import SavedState, State
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["MonitorSettings", "Monitors"]

_FIELDS: Final = ("conversations", "rates", "rate", "drift", "audit", "recent")


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """The settings of the monitors.

    Attributes:
        alpha: The budget, audits included: calls per unit, above 0.
        delta: Probability in (0, 1) of any false alarm, ever, for each alarm. Also the probability that the
            audit's interval is ever wrong, and the same for the band around the rate.
        audit_share: Share of the requests that is audited, in [0, 1).
        keep_scores: Number of recent scores that are kept, at least 1.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of requests of a conversation that the certificate allows for. Longer
            conversations are cut.
        limit: The rate that the rate alarm tests against, audits included; None: alpha. A bound of the calibration
            has taken half of delta, and the alarm uses the other half.
    """

    alpha: float
    delta: float = 0.05
    audit_share: float = 0.0
    keep_scores: int = 10_000
    unit: BudgetUnit = BudgetUnit.TURN
    max_turns: int = 1
    limit: RateLimit | None = None

    @property
    def rate_limit(self) -> RateLimit:
        """The rate that the rate alarm tests against."""
        return self.limit or RateLimit(self.alpha)


class Monitors:
    """Call rates, rate alarm, score drift alarm, audit floor and recent scores. Not thread-safe.

    The alarms and the recent scores take whole conversations, when they have ended. The turns of one conversation
    depend on each other; a rule for single turns would raise false alarms.

    Args:
        settings: The settings.
        scores: Delegation values of the calibration turns.

    Attributes:
        settings: The argument of the same name.
        conversations: The conversations that have not ended.
        rates: Calls per request, per judged turn and per conversation.
        rate: The alarm on a rate above the limit.
        drift: The alarm on a change of the scores.
        audit: The estimate of missed harm; None without audits.
        recent: The newest scores.

    Raises:
        ConfigError: A setting lies outside its range.
        DataError: No calibration turn is readable.
    """

    def __init__(self, settings: MonitorSettings, scores: TurnScores) -> None:
        self.settings = settings
        limit = settings.rate_limit
        # Unpredictable, so that a sender cannot adapt inputs to the random numbers.
        seed = secrets.randbits(63)
        self.conversations = OpenConversations(seed=seed, max_turns=settings.max_turns)
        self.rates = CallRates()
        self.rate = RateAlarm(
            limit.rate,
            delta=settings.delta if limit.kind is LimitKind.BUDGET else settings.delta / 2,
            unit=settings.unit,
            max_turns=settings.max_turns,
        )
        self.drift = ScoreDriftAlarm(reference_scores(scores), delta=settings.delta, seed=seed)
        self.audit = AuditFloor(settings.audit_share, delta=settings.delta) if settings.audit_share else None
        self.recent = RecentScores(settings.keep_scores, max_turns=settings.max_turns)

    def update(self, request: Request) -> None:
        """Take one request, in order of arrival.

        Raises:
            DataError: A delegation value is NaN or -inf.
        """
        for d in request.scores:
            if not d > -math.inf:
                raise DataError(f"delegation value is {d}", hint="Delegation values must be numbers")
        self.rates.update(request)
        self.recent.update(request)
        for conversation in self.conversations.update(request):
            self._close(conversation)

    def unaudited(self) -> None:
        """Take one input that the audit's coin did not select."""
        if self.audit is not None:
            self.audit.update(missed=None)

    def audited(self, *, missed: bool) -> None:
        """Take the outcome of an audit.

        Args:
            missed: Whether the expert calls the cascade's own verdict wrong, or gave no answer.
        """
        if self.audit is not None:
            self.audit.update(missed=missed)

    def alarms(self) -> dict[str, int | None]:
        """Return, for each alarm, the number of the conversation at which it was raised, or None."""
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

    def _close(self, conversation: ClosedConversation) -> None:
        self.rates.close(conversation)
        if conversation.requests:
            self.rate.update(conversation.calls, conversation.requests)
        if conversation.turn is not None:
            self.drift.update(conversation.turn)
        self.recent.release(conversation.conversation)

    def state(self) -> State:
        """Return everything that the next update depends on, except the calibration scores, as plain JSON values."""
        return {
            "conversations": self.conversations.state(),
            "rates": self.rates.state(),
            "rate": self.rate.state(),
            "drift": self.drift.state(),
            "audit": None if self.audit is None else self.audit.state(),
            "recent": self.recent.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: MonitorSettings, scores: TurnScores) -> Self:
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
        expected = monitors._identity()
        monitors.conversations = OpenConversations.from_state(saved.nested("conversations"))
        monitors.rates = CallRates.from_state(saved.nested("rates"))
        monitors.rate = RateAlarm.from_state(saved.nested("rate"))
        monitors.drift = ScoreDriftAlarm.from_state(saved.nested("drift"), reference_scores(scores))
        if monitors.audit is not None:
            monitors.audit = AuditFloor.from_state(saved.nested("audit"))
        monitors.recent = RecentScores.from_state(saved.nested("recent"), capacity=settings.keep_scores)
        if monitors._identity() != expected:
            raise DataError("saved state of the monitors is of other settings", hint="Start new monitors")
        return monitors

    def _identity(self) -> tuple[object, ...]:
        rate, audit = self.rate, self.audit
        return rate.limit, rate.delta, rate.unit, rate.max_turns, self.conversations.max_turns, audit and audit.share
