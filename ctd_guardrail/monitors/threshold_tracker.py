"""A threshold that rises while too much is delegated and comes back down, never below the certified one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.monitors.state import SavedState, State, fingerprint
from ctd_guardrail.monitors.token_bucket import exact_share
from ctd_guardrail.policy.budget import sort_scores

__all__ = ["STEP", "ThresholdTracker"]

STEP: Final = 0.005
_STEPS: Final = 200  # 1 / STEP, a whole number


class ThresholdTracker:
    """Keeps the number of delegations near alpha T in any window, by moving the threshold instead of denying calls.

    In rank space, where 1 is the largest of n calibration scores and the certified threshold is u_cal = (n - k) / n,

        u <- max(u_cal, u + eta (D - alpha)),    eta = .005,

    and an input is delegated (D = 1) iff d > the ceil(u n)-th smallest calibration score; for u >= 1 none is, except
    while u rests at u_cal. This is
    the quantile tracker of adaptive conformal inference (Gibbs and Candes, arXiv 2106.00170; Angelopoulos, Candes and
    Tibshirani, arXiv 2307.16895), held above the certificate. u stays below 1 + eta (1 - alpha), so in every window of
    every sequence, random or not,

        delegations - alpha T <= (1 - u_cal) / eta + 1 - alpha,    about alpha / eta + 1.

    While the rate is at most alpha the threshold mostly rests at the certified one, and being above it only lowers
    the rate, so the certificate holds on. Kept as the debt (u - u_cal) / eta >= 0 in whole-number arithmetic.

    Args:
        scores: Delegation values of the calibration inputs, shape [n].
        alpha: The budget, in (0, 1).
        k: Number of calibration scores above the certified threshold, ``Certificate.k``; -1 where nothing is
            certified, and then nothing is delegated.

    Attributes:
        alpha: As given.
        k: As given.

    Raises:
        ConfigError: alpha lies outside (0, 1), or k outside -1..n - 1.
        DataError: There are no scores, or one is NaN or infinite; its row is named.
    """

    def __init__(self, scores: NDArray[np.float64], alpha: float, k: int) -> None:
        share = exact_share("alpha", alpha)
        self._scores = sort_scores(scores)
        self._reference = fingerprint(self._scores)
        if not -1 <= k < self._scores.size:
            raise ConfigError(f"{k!r} is not between -1 and {self._scores.size - 1}", key="k")
        self.alpha = alpha
        self.k = k
        # One delegation in units of 1 / denominator, and what a request allows in the same units.
        self._call = share.denominator
        self._allowance = share.numerator
        self._debt = 0

    @property
    def debt(self) -> float:
        """Delegations beyond alpha per request that are still to be made up for."""
        return self._debt / self._call

    @property
    def threshold(self) -> float:
        """The lambda to use for the next input: delegate iff d > lambda."""
        n = self._scores.size
        # u >= 1, where (u - u_cal) n = raise / unit; at rest the certified threshold itself is in force.
        lift, unit = n * self._debt, _STEPS * self._call
        if self.k < 0 or (self._debt > 0 and lift >= self.k * unit):
            return math.inf
        return float(self._scores[n - self.k - 1 - (-lift // unit)])

    def update(self, *, delegated: bool) -> float:
        """Take one request and return the threshold for the next.

        Args:
            delegated: Whether the budget rule gave it to the expert: d > :attr:`threshold`.
        """
        self._debt = max(0, self._debt + self._call * delegated - self._allowance)
        return self.threshold

    def state(self) -> State:
        """Return everything that the next update depends on but the calibration scores, as plain JSON values."""
        return {"alpha": self.alpha, "k": self.k, "reference": self._reference, "debt": self._debt}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], scores: NDArray[np.float64]) -> Self:
        """Return the monitor that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            scores: The calibration scores that it was made with.

        Raises:
            DataError: The state is not one of this monitor on these scores.
        """
        saved = SavedState(state, "threshold tracker", ("alpha", "k", "reference", "debt"))
        tracker = cls(scores, saved.share("alpha"), saved.integer("k", minimum=-1))
        cls._resume(tracker, saved)
        return tracker

    def _resume(self, saved: SavedState) -> None:
        saved.check_scores("reference", self._reference)
        self._debt = saved.integer("debt")
