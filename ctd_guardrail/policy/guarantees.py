"""The guarantees for a budget alpha, and the number of calibration scores that may lie above the threshold under each.

Let R be the share of inputs that the threshold delegates. With k of n calibration scores above it, R follows a
Beta(k + 1, n - k) law over the calibration draw for continuous scores of any distribution. Ties only lower it. Each
guarantee is a bound on k:

========== =============================================================== ====================
guarantee  statement                                                       alpha is chosen
========== =============================================================== ====================
exact      P(R <= alpha) >= 1 - delta                                      before looking
simultaneous  P(R(alpha) <= alpha for every alpha in [.01, .55]) >= 1 - delta  after looking
expected   E[R] <= alpha                                                   before looking
next       P(at most alpha T of the next T inputs are delegated) >= 1 - delta  before looking
========== =============================================================== ====================

``simultaneous`` has a file of its own, :mod:`ctd_guardrail.policy.envelope`. Counts are integers throughout, and a
share is compared as ``count / total <= alpha``. In floating point the product ``n * alpha`` rounds to the wrong integer
in about 4% of all (count, total).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
from scipy.special import bdtr, bdtrik, ndtri

from ctd_guardrail.errors import ConfigError

__all__ = [
    "Exact",
    "Expected",
    "Guarantee",
    "NextRequests",
    "Rule",
    "check_share",
    "largest_count",
    "max_exceedances",
    "min_alpha",
    "min_rows",
]

# Above the relative error of (1 - alpha)^n for n up to a million: the smallest alpha itself is feasible.
_ROUNDING: Final = 1e-10


class Guarantee(StrEnum):
    """Meaning of ``alpha``. The table at the top of this module has the statements."""

    EXACT = "exact"
    SIMULTANEOUS = "simultaneous"
    EXPECTED = "expected"
    NEXT = "next"


class Rule(Protocol):
    """A guarantee with its error probability filled in."""

    def exceedances(self, n: int, alpha: float) -> int:
        """Return the largest number of n scores that may lie above the threshold, -1 where none will do."""
        ...

    def rows(self, n: int, alpha: float) -> int:
        """Return the smallest number of scores for which :meth:`exceedances` is not -1; n are at hand."""
        ...

    def budget(self, n: int) -> float:
        """Return the smallest alpha for which :meth:`exceedances` is not -1."""
        ...


def max_exceedances(n: int, alpha: float, delta: float) -> int:
    """Return k* = max{k : P(Binomial(n, alpha) <= k) <= delta}, or -1 where even k = 0 is too likely.

    With k* scores above lambda, R(lambda) > alpha has probability at most delta: for continuous scores
    R ~ Beta(k* + 1, n - k*) and P(R > alpha) = P(Binomial(n, alpha) <= k*) exactly; ties only lower it
    (Clopper and Pearson 1934; the closed form of the exact binomial test in Learn-then-Test, arXiv 2110.01052).

    Args:
        n: Number of calibration scores, at least 1.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1).
    """
    check_share("alpha", alpha)
    check_share("delta", delta)
    # bdtrik inverts the binomial CDF in k; the neighbours settle its rounding.
    guess = float(bdtrik(delta, n, alpha))
    k = min(n - 1, math.floor(guess) + 1) if math.isfinite(guess) else n - 1
    while k >= 0 and float(bdtr(k, n, alpha)) > delta:
        k -= 1
    return k


def min_rows(alpha: float, delta: float) -> int:
    """Return the smallest n for which :func:`max_exceedances` is not -1: ceil(ln delta / ln(1 - alpha))."""
    check_share("alpha", alpha)
    check_share("delta", delta)
    n = math.ceil(math.log(delta) / math.log1p(-alpha))
    # The logarithms round; (1 - alpha)^n <= delta is what counts.
    while n > 1 and float(bdtr(0, n - 1, alpha)) <= delta:
        n -= 1
    while float(bdtr(0, n, alpha)) > delta:
        n += 1
    return n


def min_alpha(n: int, delta: float) -> float:
    """Return the smallest alpha that n scores can certify at delta, 1 - delta^(1/n); rounding errors raise it."""
    if n < 1:
        return 1.0
    return min(1.0, -math.expm1(math.log(delta) / n) * (1.0 + _ROUNDING))


@dataclass(frozen=True, slots=True)
class Exact:
    """P(R <= alpha) >= 1 - delta for an alpha that was fixed before the scores were seen.

    Attributes:
        delta: Error probability over the calibration draw.
    """

    delta: float

    def exceedances(self, n: int, alpha: float) -> int:
        """Return k*, see :func:`max_exceedances`."""
        return max_exceedances(n, alpha, self.delta)

    def rows(self, n: int, alpha: float) -> int:  # noqa: ARG002 - only `simultaneous` depends on it
        """Return ceil(ln delta / ln(1 - alpha))."""
        return min_rows(alpha, self.delta)

    def budget(self, n: int) -> float:
        """Return 1 - delta^(1/n)."""
        return min_alpha(n, self.delta)


@dataclass(frozen=True, slots=True)
class Expected:
    """E[R] <= alpha over calibration draws: about half of them delegate more than alpha.

    The mean of Beta(k + 1, n - k) is (k + 1) / (n + 1), so k + 1 = floor((n + 1) alpha): split conformal prediction
    (Vovk, Gammerman and Shafer 2005), and conformal risk control for the 0/1 loss (arXiv 2208.02814).
    """

    def exceedances(self, n: int, alpha: float) -> int:
        """Return floor((n + 1) alpha) - 1."""
        check_share("alpha", alpha)
        return largest_count(n + 1, alpha) - 1

    def rows(self, n: int, alpha: float) -> int:  # noqa: ARG002 - only `simultaneous` depends on it
        """Return ceil(1 / alpha) - 1."""
        check_share("alpha", alpha)
        return _smallest(lambda rows: 1 / (rows + 1) <= alpha)

    def budget(self, n: int) -> float:
        """Return 1 / (n + 1)."""
        return 1 / (n + 1)


@dataclass(frozen=True, slots=True)
class NextRequests:
    """P(at most alpha T of the next T inputs are delegated) >= 1 - delta.

    Their number X is BetaBinomial(T, k + 1, n - k). Equivalently, rank calibration and next inputs together from
    the top. X > m means that at most k of the first m + 1 + k are calibration inputs. This is a hypergeometric tail,
    whose terms are summed in microseconds (negative hypergeometric law of exceedances; David and Nagaraja, Order
    Statistics, 3rd ed., section 7.4).

    Attributes:
        delta: Error probability over the calibration draw and the next T inputs.
        horizon: T, the number of inputs that the statement covers, at least 1.
    """

    delta: float
    horizon: int

    def exceedances(self, n: int, alpha: float) -> int:
        """Return max{k : P(X > floor(alpha T)) <= delta}, or -1."""
        check_share("alpha", alpha)
        allowed = largest_count(self.horizon, alpha)
        # R has variance alpha (1 - alpha) / n around k / n, and the count another alpha (1 - alpha) / T: a start.
        spread = math.sqrt(alpha * (1 - alpha) * n * (1 + n / self.horizon))
        guess = math.floor(n * alpha + float(ndtri(self.delta)) * spread)
        # More scores above the threshold mean more delegated inputs: the condition is monotone in k.
        return _smallest(lambda k: k >= n or not self._holds(n, k, allowed), at_least=0, guess=min(n, guess)) - 1

    def rows(self, n: int, alpha: float) -> int:  # noqa: ARG002 - only `simultaneous` depends on it
        """Return the smallest n that certifies alpha with no score above the threshold."""
        check_share("alpha", alpha)
        allowed = largest_count(self.horizon, alpha)
        return _smallest(lambda rows: self._holds(rows, 0, allowed))

    def budget(self, n: int) -> float:
        """Return the smallest m / T that n scores can certify, or 1 if there is none."""
        allowed = _smallest(lambda m: m >= self.horizon or self._holds(n, 0, m), at_least=0)
        return allowed / self.horizon

    def _holds(self, n: int, k: int, allowed: int) -> bool:
        return _hypergeometric_cdf(k, n, self.horizon, allowed + 1 + k) <= self.delta


def largest_count(total: int, share: float, *, most: int | None = None) -> int:
    """Return max{c : c / total <= share}, which floor(total * share) misses by rounding; at most total, or ``most``."""
    most = total if most is None else most
    count = min(most, math.floor(total * share))
    while count < most and (count + 1) / total <= share:
        count += 1
    while count > 0 and count / total > share:
        count -= 1
    return count


def check_share(name: str, value: float) -> None:
    """Refuse a value outside (0, 1).

    Raises:
        ConfigError: It is 0, 1, beyond them, or NaN.
    """
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{value!r} is not between 0 and 1", key=name, hint=f"Set {name} to a share such as 0.1")


def _smallest(holds: Callable[[int], bool], *, at_least: int = 1, guess: int | None = None) -> int:
    """Return the smallest integer >= at_least from which on ``holds`` is true, by galloping out from a guess."""
    high = at_least if guess is None else max(at_least, guess)
    low = high - 1
    step = 1
    while not holds(high):
        low, high, step = high, high + step, 2 * step
    step = 1
    while low >= at_least and holds(low):
        low, high, step = low - step, low, 2 * step
    low = max(low, at_least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _hypergeometric_cdf(k: int, marked: int, unmarked: int, draws: int) -> float:
    """Return P(H <= k), H the number of marked items among draws without replacement.

    The terms are built from their ratios outwards from the mode and divided by their sum, so no factorial is
    rounded. Terms farther than 9 standard deviations and 40 items from the mode sum to less than 1e-15. Sampling
    without replacement is no more spread than the binomial (Hoeffding 1963, section 6).
    """
    low, high = max(0, draws - unmarked), min(marked, draws)
    if k < low:
        return 0.0
    if k >= high:
        return 1.0
    share = marked / (marked + unmarked)
    mode = min(high, max(low, (draws + 1) * (marked + 1) // (marked + unmarked + 2)))
    reach = 40 + math.ceil(9 * math.sqrt(draws * share * (1 - share)))
    i = np.arange(max(low, mode - reach), min(high, mode + reach), dtype=np.float64)
    ratio = (marked - i) * (draws - i) / ((i + 1) * (unmarked - draws + i + 1))
    below = mode - int(i[0]) if i.size else 0
    terms = np.concatenate(
        [np.cumprod(1 / ratio[:below][::-1])[::-1], np.ones(1), np.cumprod(ratio[below:])],
    )
    first = mode - below
    return float(terms[: max(0, k - first + 1)].sum() / terms.sum())
