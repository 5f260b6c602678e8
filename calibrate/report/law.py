"""The distribution of the share of inputs above a certified threshold.

With k of n calibration scores above the threshold, the share R of all future inputs above it follows
Beta(k + 1, n - k) over calibration draws, for any distribution of the scores (docs/guarantees.md). Ties only
lower it. The number among the next T inputs is then BetaBinomial(T, k + 1, n - k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import betaincinv
from scipy.stats import betabinom

__all__ = ["BAND", "RateLaw"]

BAND: Final = 0.9
"""Probability of the intervals. Each side is missed once in twenty cases."""


@dataclass(frozen=True, slots=True)
class RateLaw:
    """The distribution of the delegated share and of the number of calls.

    Attributes:
        k: Number of calibration scores above the threshold, at least 0.
        n: Number of calibration scores, more than k.
    """

    k: int
    n: int

    def rates(self) -> tuple[float, float]:
        """Return the central interval that contains R with probability :data:`BAND`."""
        low, high = betaincinv(self.k + 1, self.n - self.k, np.array([(1 - BAND) / 2, (1 + BAND) / 2])).tolist()
        return low, high

    def calls(self, horizon: int) -> tuple[int, int]:
        """Return the interval that contains the number of calls among the next inputs with at least that probability.

        Args:
            horizon: T, the number of inputs.
        """
        law = np.cumsum(betabinom.pmf(np.arange(horizon + 1), horizon, self.k + 1, self.n - self.k))
        low, high = np.searchsorted(law, [(1 - BAND) / 2, (1 + BAND) / 2])
        return int(low), min(int(high), horizon)
