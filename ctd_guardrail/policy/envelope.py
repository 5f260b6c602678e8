"""One certificate for every alpha at once: the range-restricted Beta envelope.

If alpha is chosen after the calibration results are seen, R(lambda(alpha)) <= alpha must hold for all alpha together.
With K - 1 of n scores above it, a threshold delegates U_(K), the K-th smallest of n uniforms. Bound each by the same
quantile, b_K = Beta(K, n - K + 1)^-1(1 - eta), and choose the largest eta for which

    P(U_(K) <= b_K for every rank K that an alpha in [.01, .55] can lead to) >= 1 - delta.

This is the equal-local-levels band (Berk and Jones 1979; Moscovich, Nadler and Spiegelman, arXiv 1311.3190)
restricted to useful budgets, on one side. Since b_K <= alpha exactly if the binomial test of alpha
passes at eta, a look-up is :func:`max_exceedances` at eta in place of delta.

The probability is that of a path above a step boundary. A Poisson process is conditioned on its value at 1. The
distribution of the surviving paths is carried from one boundary point to the next (Khmaladze and Shinjikashvili 2001;
by FFT, Moscovich and Nadler, arXiv 1503.04363). If the spacing of the ranks is far below their standard deviation, only
some of them are used. This keeps the work at O(n log n), and the certificate is exact for the used ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainccinv, gammaln

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.guarantees import check_share, max_exceedances, min_alpha, min_rows

__all__ = ["ALPHA_HIGH", "ALPHA_LOW", "Simultaneous", "coverage", "critical_eta"]

# Widening the range to (0, 1) would cost every budget inside it: eta falls as the range grows.
ALPHA_LOW: Final = 0.01
ALPHA_HIGH: Final = 0.55

# Ranks sit at n sin^2(i h / 2). h = .1 / sqrt(n) is a tenth of a standard deviation of U_(K). From n = 1e4 on, h = .001
# rounds alpha = .1 down by at most .3%.
_STEP_DEVIATIONS: Final = 0.1
_STEP_ANGLE: Final = 1e-3

# Paths this far above their mean, under the law given N(1) = n, have a total probability below 1e-18. Dropping them
# lowers the computed coverage, which is safe.
_REACH: Final = 9.0
_TOLERANCE: Final = 1e-3
# delta / eta for n in the thousands, where the search starts.
_TYPICAL_RANKS: Final = 16.0


@dataclass(frozen=True, slots=True)
class Simultaneous:
    """P(R(lambda(alpha)) <= alpha for every alpha in [.01, .55]) >= 1 - delta: alpha may be chosen after looking.

    Attributes:
        delta: Error probability over the calibration draw, for all alpha together.
    """

    delta: float

    def exceedances(self, n: int, alpha: float) -> int:
        """Return K - 1 for the largest rank K in use with b_K <= alpha, or -1.

        Raises:
            ConfigError: alpha lies outside [.01, .55].
        """
        _check_range(alpha)
        return _rank_below(n, max_exceedances(n, alpha, critical_eta(n, self.delta)) + 1) - 1

    def rows(self, n: int, alpha: float) -> int:
        """Return the n that certifies alpha: at the eta of n where that is enough, else at the eta of the answer."""
        _check_range(alpha)
        needed = min_rows(alpha, critical_eta(n, self.delta))
        if needed <= n:
            return needed
        # eta falls with n and the rows needed rise as it falls: the iteration climbs to the fixed point.
        while (more := min_rows(alpha, critical_eta(needed, self.delta))) > needed:
            needed = more
        return needed

    def budget(self, n: int) -> float:
        """Return the smallest alpha in [.01, .55] that n scores can certify, or 1 if there is none."""
        smallest = max(ALPHA_LOW, min_alpha(n, critical_eta(n, self.delta)))
        return smallest if smallest <= ALPHA_HIGH else 1.0


@lru_cache(maxsize=256)
def critical_eta(n: int, delta: float) -> float:
    """Return the largest eta whose envelope covers all ranks together with probability 1 - delta.

    Found to one part in a thousand and never above the true value, in milliseconds at n = 100 and seconds at n = 1e6.
    A process computes it once for each n and delta.

    Args:
        n: Number of calibration scores, at least 1.
        delta: Error probability in (0, 1).
    """
    check_share("delta", delta)

    # At eta = delta one rank alone uses delta up; at delta / (number of ranks) the union bound covers all of them.
    low, high = delta / max(1, _ranks(n).size), delta
    if 1.0 - coverage(n, high) <= delta * (1.0 + 1e-9):
        return high
    eta = max(low, delta / _TYPICAL_RANKS)
    while high / low > 1.0 + _TOLERANCE:
        missed = 1.0 - coverage(n, eta)
        if missed > delta:
            high = eta
        elif missed < delta * (1.0 - _TOLERANCE):
            low = eta
        else:
            return eta
        # What is missed is nearly proportional to eta; aim at the middle of the tolerance.
        eta *= delta / max(missed, 1e-9) * (1.0 - _TOLERANCE / 2)
        if not low < eta < high:
            eta = math.sqrt(low * high)
    return low


def coverage(n: int, eta: float) -> float:
    """Return P(U_(K) <= b_K for every rank K that an alpha in [.01, .55] can lead to).

    Args:
        n: Number of calibration scores, at least 1.
        eta: Error probability of each rank by itself.
    """
    ranks = _ranks(n)
    bounds = np.asarray(betainccinv(ranks, n - ranks + 1, eta))
    # The lowest alpha leads to the last rank whose bound does not exceed it, and asks only for U_(K) <= .01 there.
    first = max(0, int(np.searchsorted(bounds, ALPHA_LOW, side="right")) - 1)
    last = int(np.searchsorted(bounds, ALPHA_HIGH, side="right"))
    boundary = np.maximum(bounds[first:last], ALPHA_LOW)
    alive = np.ones(1)
    floor, time = 0, 0.0
    for rank, bound in zip(ranks[first:last].tolist(), boundary.tolist(), strict=True):
        spread = math.sqrt(n * bound * (1.0 - bound))
        top = min(n, math.ceil(n * bound + _REACH * spread + 30.0))
        moved = _add_poisson(alive, n * (bound - time), top - floor + 1)
        # Paths with fewer than `rank` points by now have crossed.
        alive = moved[rank - floor :]
        floor, time = rank, bound
    counts = floor + np.arange(alive.size)
    return float(alive @ np.exp(_log_poisson(n - counts, n * (1.0 - time)) - _log_poisson(np.array(n), float(n))))


def _add_poisson(mass: FloatArray, mean: float, size: int) -> FloatArray:
    """Return the distribution of a count after adding Poisson(mean) to it, its first ``size`` values."""
    taps = math.ceil(mean + _REACH * math.sqrt(mean) + 30.0)
    length = 1 << (max(mass.size + taps, size) - 1).bit_length()
    frequency = np.exp(-2j * np.pi / length * np.arange(length // 2 + 1))
    spectrum = np.fft.rfft(mass, length) * np.exp(mean * (frequency - 1.0))
    return np.maximum(np.fft.irfft(spectrum, length)[:size], 0.0)


def _log_poisson(count: NDArray[np.integer], mean: float) -> FloatArray:
    return np.asarray(count * math.log(mean) - mean - gammaln(count + 1.0))


def _angle(n: int) -> float:
    return max(_STEP_ANGLE, _STEP_DEVIATIONS / math.sqrt(n))


def _rank_at(n: int, index: IntArray) -> IntArray:
    # Multiples of 1e-6 below an integer are that integer, rounded.
    return np.asarray(np.floor(n * np.sin(index * (_angle(n) / 2)) ** 2 + 1e-6), dtype=np.int64)


def _ranks(n: int) -> IntArray:
    """Return the ranks in use, ascending: all of them for small n, else equally spaced in standard deviations."""
    ranks = np.unique(_rank_at(n, np.arange(math.floor(math.pi / _angle(n)) + 1)))
    return ranks[ranks >= 1]


def _rank_below(n: int, rank: int) -> int:
    """Return the largest rank in use that is at most ``rank``, or 0 if there is none."""
    index = math.floor(2.0 * math.asin(math.sqrt(rank / n)) / _angle(n))
    near = _rank_at(n, np.arange(max(0, index - 1), index + 3))
    return int(near[near <= rank].max(initial=0))


def _check_range(alpha: float) -> None:
    check_share("alpha", alpha)
    if not ALPHA_LOW <= alpha <= ALPHA_HIGH:
        raise ConfigError(
            f"{alpha!r} lies outside [{ALPHA_LOW}, {ALPHA_HIGH}], which the simultaneous guarantee covers",
            key="alpha",
            hint="Choose alpha inside it, or fix alpha beforehand and use guarantee: exact",
        )
