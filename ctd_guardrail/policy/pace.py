"""Pacing: a threshold that rises while traffic asks for more calls of the expert than the budget pays for.

A certificate holds for inputs like those of the calibration. If scores rise, the certified threshold delegates more
than alpha until the policy is calibrated again. Meanwhile a pace keeps the calls at alpha. Its threshold is never below
the certified one. :class:`Pace` is the state and :class:`PacedRule` the rule.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.policy.guarantees import check_share
from ctd_guardrail.policy.rule import DelegationRule
from ctd_guardrail.text.conversation import Conversation

__all__ = ["LEAST_RESERVE", "Pace", "PacedRule", "Period", "certified"]

LEAST_RESERVE: Final = 20
"""Smallest reserve, in calls. A smaller one would raise the threshold by chance where the rate is at alpha."""


class Period(StrEnum):
    """The time over which calls are balanced."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> float:
        """Its length."""
        return {Period.MINUTE: 60.0, Period.HOUR: 3600.0, Period.DAY: 86400.0}[self]


class Pace:
    """How far the calls of the expert are ahead of alpha x requests, and what that leaves to the rule. Thread-safe.

    The lead U starts at 0. A call adds 1, and a request subtracts alpha, down to 0. The reserve B is the largest
    admissible lead: the rule may call only while U + 1 <= B. If U is above B/2, the threshold rises with it. Of the k
    calibration scores above the certified threshold, the highest ``share`` x k stay above it:

        share = min(1, 2 (B - U) / B),    0 if U + 1 > B.

    Bound: over any span with T requests and c calls, U rises by at least c - alpha T, because the floor at 0 only adds
    to it. So c <= alpha T + U(end) - U(start). With 0 <= U <= B,

        calls <= alpha x requests + B    in every span, for every sequence of requests.

    This is a token bucket that requests refill (Turner, IEEE Communications Magazine 24(10), 1986), with a threshold
    instead of a sharp edge. The tracker lambda <- max(lambda_cal, lambda + eta (D - alpha)) in rank space has the same
    proof, with B = alpha / eta + 1 (Gibbs and Candes, arXiv 2106.00170). It raises the threshold after every call. A
    pace does so only after B/2 calls too many. A call that no threshold can withhold, see :meth:`count_request`,
    counts in U up to B. Further ones add to the bound.

    The reserve is the budget of one period. At the end of each, B becomes the largest of alpha x its requests,
    :data:`LEAST_RESERVE` and min(B, 2 U). The last term keeps U <= B without forgiving a lead. So B never exceeds the
    budget of the busiest complete period, or :data:`LEAST_RESERVE`.

    A request counts at its end. Requests in progress delay the refill and do not weaken the bound.

    Args:
        alpha: The budget: calls per request, in (0, 1).
        period_s: Seconds of a period.
        clock: A monotonic clock, in seconds.

    Raises:
        ConfigError: alpha lies outside (0, 1).
    """

    def __init__(self, alpha: float, period_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        check_share("alpha", alpha)
        self.alpha = alpha
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        self._period = math.floor(clock() / period_s)
        self._requests = 0
        self._lead = 0.0
        self._reserve = float(LEAST_RESERVE)

    @property
    def reserve(self) -> float:
        """Calls by which the expert may be ahead of alpha x requests."""
        with self._lock:
            self._advance()
            return self._reserve

    @property
    def lead(self) -> float:
        """Calls by which it is ahead now."""
        with self._lock:
            return self._lead

    @property
    def share(self) -> float:
        """Share of the certified calls that the rule may make now, in [0, 1]."""
        with self._lock:
            self._advance()
            return self._share()

    def take(self, is_due: Callable[[float], bool]) -> bool:
        """Count a call if the rule makes it.

        Args:
            is_due: Whether the rule delegates the input at a share.

        Returns:
            The answer of ``is_due``; False without a question where the reserve is used up.
        """
        with self._lock:
            self._advance()
            share = self._share()
            if share == 0.0 or not is_due(share):
                return False
            self._lead += 1.0
            return True

    def count_request(self, further_calls: int = 0) -> None:
        """Count a request at its end. It pays for alpha calls.

        Args:
            further_calls: Its calls that no threshold decides about: audits, and inputs that the probes cannot read.
                Negative: calls that the rule has counted and that a limit on the calls of a request withheld.
        """
        with self._lock:
            self._advance()
            self._requests += 1
            self._lead = min(max(0.0, self._lead + further_calls - self.alpha), self._reserve)

    def _share(self) -> float:
        if self._lead + 1.0 > self._reserve:
            return 0.0
        return min(1.0, 2.0 * (self._reserve - self._lead) / self._reserve)

    def _advance(self) -> None:
        """Begin a new period if the last one has ended."""
        period = math.floor(self._clock() / self._period_s)
        if period == self._period:
            return
        # A period without a request may lie between.
        requests = self._requests if period == self._period + 1 else 0
        kept = min(self._reserve, 2.0 * self._lead)
        self._reserve = max(self.alpha * requests, float(LEAST_RESERVE), kept)
        self._period, self._requests = period, 0


@dataclass(frozen=True, slots=True)
class PacedRule:
    """A certified rule whose threshold a pace may raise.

    Two paced rules are equal if they pace equal rules over equal periods, whatever they have counted.

    Attributes:
        rule: The certified rule. The paced one delegates nothing that it would not delegate.
        period: The time over which calls are balanced.
        pace: What was counted.
        above: Calibration scores above the certified threshold in ascending order, shape [k].
    """

    rule: DelegationRule
    period: Period
    pace: Pace = field(compare=False)
    above: FloatArray = field(compare=False)

    @classmethod
    def of(cls, rule: DelegationRule, scores: FloatArray, period: Period, pace: Pace) -> Self:
        """Pace a rule.

        Args:
            rule: The certified rule.
            scores: Delegation values of the calibration inputs in ascending order, shape [n]; +inf for an input that
                goes to the expert whatever the threshold.
            period: The time over which calls are balanced.
            pace: What is counted.
        """
        is_paced = (scores > rule.threshold) & np.isfinite(scores)
        return cls(rule, period, pace, scores[is_paced])

    @property
    def threshold(self) -> float:
        """Lambda at this moment, at least that of the certified rule."""
        return self._threshold_at(self.pace.share)

    def delegates(self, d: float, conversation: Conversation) -> bool:
        """Whether an input with delegation value d goes to the expert. If it does, the call is counted."""
        if not self.rule.delegates(d, conversation):
            return False
        return self.pace.take(lambda share: share == 1.0 or d > self._threshold_at(share))

    def state(self) -> dict[str, Any]:
        """Return the pace and both thresholds as plain JSON values; null for a threshold that delegates nothing."""
        at_this_moment, at_rest = self.threshold, self.rule.threshold
        return {
            "per": self.period,
            "threshold": at_this_moment if math.isfinite(at_this_moment) else None,
            "certified_threshold": at_rest if math.isfinite(at_rest) else None,
            "share": self.pace.share,
            "lead": self.pace.lead,
            "reserve": self.pace.reserve,
        }

    def _threshold_at(self, share: float) -> float:
        if share == 0.0:
            return math.inf
        k = self.above.size
        kept = math.floor(share * k)
        return self.rule.threshold if kept >= k else float(self.above[k - 1 - kept])


def certified(rule: DelegationRule) -> DelegationRule:
    """Return the certified rule behind a paced one, or the rule itself."""
    return rule.rule if isinstance(rule, PacedRule) else rule
