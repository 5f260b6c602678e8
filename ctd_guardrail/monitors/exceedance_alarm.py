"""A label-free alarm on the scores: the exceedance rates of the order statistics of the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy.special import betainccinv

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.monitors.conformal import finite_score
from ctd_guardrail.monitors.conformal_alarm import TAILS
from ctd_guardrail.monitors.e_detector import RATIOS, Alarm, advance, factors, idle
from ctd_guardrail.monitors.state import SavedState, State, fingerprint
from ctd_guardrail.policy.budget import sort_scores

__all__ = ["ExceedanceAlarm", "rate_bounds", "tail_ranks"]


def tail_ranks(n: int) -> IntArray:
    """Return the ranks K of the reference order statistics, counted from either end: .01 to .5 of n, 11 at most."""
    return np.unique(np.maximum(1, np.rint(TAILS * n).astype(np.int64)))


def rate_bounds(n: int, delta: float) -> FloatArray:
    """Return bounds b_K on the shares beyond the order statistics, which hold together with probability 1 - delta.

    The share of inputs beyond the K-th most extreme of n scores is Beta(K, n - K + 1), or stochastically smaller with
    ties. So b_K = Beta(K, n - K + 1)^-1(1 - delta / m) for the m = 22 order statistics of both ends. For so few ranks
    the union bound is tighter than an envelope of all ranks: at n = 1000 and delta = .025, 1.1e-3 against 6e-4 each.

    Args:
        n: Number of calibration scores.
        delta: Probability in (0, 1) that any bound fails, over the calibration draw.
    """
    ranks = tail_ranks(n)
    return np.asarray(betainccinv(ranks, n - ranks + 1, delta / (2 * ranks.size)))


class ExceedanceAlarm(Alarm):
    """Tells when more scores are extreme than the calibration allows.

    The e-detector of arXiv 2203.03532 tests the events d_t > (K-th largest calibration score) and d_t < (K-th
    smallest), at 11 ranks each, against :func:`rate_bounds`. The 22 events share the capital evenly. Half of delta
    goes to the bounds and half to the stream:

        P(any alarm, ever) <= delta    while each of the 22 rates, given the past, is at most that of the calibration.

    Unlike the conformal alarm, this alarm allows stream scores to depend on each other, and never treats a lasting
    change as normal. In return it detects only changes that exceed the uncertainty of the calibration, and later.

    Args:
        scores: Delegation values of the calibration inputs, shape [n].
        delta: Probability in (0, 1) of any false alarm, ever, over calibration and stream together.

    Raises:
        ConfigError: delta lies outside (0, 1).
        DataError: There are no scores, or one is NaN or infinite; its row is named.
    """

    def __init__(self, scores: FloatArray, *, delta: float = 0.05) -> None:
        super().__init__(delta)
        reference = sort_scores(scores)
        n = int(reference.size)
        ranks = tail_ranks(n)
        self._reference = fingerprint(reference)
        self._upper = reference[n - ranks]
        self._lower = reference[ranks - 1]
        self._bets = factors(rate_bounds(n, delta / 2))
        self._capital = np.zeros((2, ranks.size, len(RATIOS)))

    def update(self, d: float) -> bool:
        """Take the delegation value of one input and return whether the alarm is raised.

        Raises:
            DataError: It is NaN or infinite.
        """
        finite_score(d)
        if self.alarmed_at is not None:
            return True
        self.steps += 1
        events = np.array([d > self._upper, d < self._lower])
        self._capital = advance(self._capital, events, self._bets, self.steps)
        evidence = float(self._capital.sum()) / self._capital.size + idle(self.steps)
        # Half of delta is the stream's.
        return self._judge(evidence / 2)

    def state(self) -> State:
        """Return everything that the next update depends on but the calibration scores, as plain JSON values."""
        return self._alarm_state() | {"reference": self._reference, "capital": self._capital.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], scores: FloatArray) -> Self:
        """Return the monitor that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            scores: The calibration scores that it was made with.

        Raises:
            DataError: The state is not one of this monitor on these scores.
        """
        saved = SavedState(state, "exceedance alarm", (*cls.FIELDS, "reference", "capital"))
        alarm = cls(scores, delta=saved.share("delta"))
        cls._resume(alarm, saved)
        return alarm

    def _resume(self, saved: SavedState) -> None:
        super()._resume(saved)
        saved.check_scores("reference", self._reference)
        self._capital = saved.numbers("capital", self._capital.shape)
