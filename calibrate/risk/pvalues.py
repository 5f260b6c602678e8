"""P-values for the null hypothesis "the risk exceeds the level", from n independent losses.

Each is super-uniform under the null: P(p <= u) <= u for every u if the mean loss is above the level. Rows must be
independent. Turns of one conversation are not, see :func:`calibrate.risk.splits.one_per_cluster`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.special import bdtr, rel_entr

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError

__all__ = ["betting_p", "binomial_p", "hoeffding_bentkus_p", "kl_p", "smallest_level", "wealth_p"]

_SHUFFLE_SEED: Final = 0  # chosen without looking at the losses


def binomial_p(count: int, n: int, level: float) -> float:
    """Return P(Binomial(n, level) <= count): exact for 0/1 losses (Clopper and Pearson 1934).

    Args:
        count: Number of losses that are 1, an integer: ``n * rate`` rounds to the wrong one in 4% of cases.
        n: Number of losses. If it is 0, the p-value is 1.
        level: Level in (0, 1).
    """
    if n == 0:
        return 1.0
    return float(bdtr(count, n, level))


def kl_p(total: float, n: int, level: float) -> float:
    """Return exp(-n kl(mean, level)), or 1 if the mean is above the level (Hoeffding 1963, inequality 2.1).

    Args:
        total: Sum of the losses, each in [0, 1].
        n: Number of losses.
        level: Level in (0, 1).
    """
    if n == 0:
        return 1.0
    mean = min(total / n, level)
    return math.exp(-n * float(rel_entr(mean, level) + rel_entr(1.0 - mean, 1.0 - level)))


def hoeffding_bentkus_p(total: float, n: int, level: float) -> float:
    """Return min(KL, e P(Binomial(n, level) <= ceil(total))), at most 1.

    Bentkus 2004; combined in Learn-then-Test (arXiv 2110.01052, section 3.1) and in Bates et al. (arXiv 2101.02703).

    Args:
        total: Sum of the losses, each in [0, 1].
        n: Number of losses.
        level: Level in (0, 1).
    """
    if n == 0:
        return 1.0
    return min(kl_p(total, n, level), math.e * float(bdtr(math.ceil(total), n, level)))


def betting_p(losses: FloatArray, level: float, *, delta: float) -> float:
    """Return the p-value of the Waudby-Smith and Ramdas betting martingale for losses in any order.

    K_t = prod_{i <= t} (1 - nu_i (L_i - level)) is a non-negative supermartingale where the mean loss is at least the
    level, so Ville's inequality bounds its maximum. nu_i = min(.75 / (1 - level), sqrt(2 ln(1/delta) / (n s2_{i-1})))
    uses earlier losses only, with mu_i = (1/2 + sum L) / (i + 1) and s2_i = (1/4 + sum (L - mu)^2) / (i + 1)
    (arXiv 2010.09686, section 4.3; Learn-then-Test, appendix B). It adapts to the variance: for losses such as
    the Brier score it is far tighter than bounds that use the mean alone.

    The losses are shuffled first, the same way for each n. In an order that depends on the scores K_t is no martingale,
    and the test is invalid.

    Args:
        losses: Losses in [0, 1], shape [n].
        level: Level in (0, 1).
        delta: Error probability that the bets are tuned for. The p-value is valid at any other.

    Raises:
        DataError: A loss is NaN or outside [0, 1].
    """
    bad = np.flatnonzero(~((losses >= 0.0) & (losses <= 1.0)))
    if bad.size:
        raise DataError(f"loss is {losses[bad[0]]}, not in [0, 1]", row=int(bad[0]) + 1)
    if losses.size == 0:
        return 1.0
    return wealth_p(np.random.default_rng(_SHUFFLE_SEED).permutation(losses), level, delta)


def smallest_level(p_at: Callable[[float], float], delta: float) -> float:
    """Return the smallest level at which a p-value passes delta: the upper confidence bound of the risk.

    Args:
        p_at: The p-value as a non-increasing function of the level.
        delta: Error probability in (0, 1).
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if p_at(middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def wealth_p(losses: FloatArray, level: float, delta: float) -> float:
    """Return 1 / max_t K_t of :func:`betting_p`, at most 1, for losses in the order given. It must be random.

    Args:
        losses: Losses in [0, 1], shape [n], n > 0.
        level: Level in (0, 1).
        delta: Error probability that the bets are tuned for.
    """
    n = losses.size
    count = np.arange(2, n + 2)
    mean = (0.5 + np.cumsum(losses)) / count
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / count
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(0.75 / (1.0 - level), np.sqrt(2.0 * math.log(1.0 / delta) / (n * before)))
    wealth = np.cumsum(np.log1p(-bets * (losses - level)))
    return math.exp(-max(0.0, float(wealth.max())))
