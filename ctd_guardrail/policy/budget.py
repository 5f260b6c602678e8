"""From a budget alpha to the delegation threshold lambda, with a certificate.

Let d_1..d_n be the delegation values of n calibration inputs, exchangeable with the inputs of the deployment, and
R(lambda) = P(d > lambda) the share of inputs that the rule ``delegate iff d > lambda`` (strict) sends to the expert.
With the threshold of :func:`certify`, P(R(lambda) <= alpha) >= 1 - delta over the draw of the calibration inputs.

Counts are integers throughout: ``n * rate`` in floating point is wrong in about 4% of all (k, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrik

from ctd_guardrail.errors import ConfigError, DataError

__all__ = ["Certificate", "Status", "certify", "max_exceedances", "min_alpha", "min_rows", "sort_scores"]

FloatArray = NDArray[np.float64]


class Status(StrEnum):
    """Whether the scores can certify the budget."""

    CERTIFIED = "certified"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold and what is known about the rate at which it delegates.

    Attributes:
        status: Whether the budget is certified.
        threshold: lambda; ``+inf`` where infeasible: nothing is delegated.
        k: Number of calibration scores that may lie above the threshold, k*; -1 where infeasible.
        n: Number of calibration scores.
        alpha: The budget: largest admissible share of delegated inputs.
        delta: Admissible probability, over the calibration draw, that the share exceeds alpha.
        mean_rate: Expected share of delegated inputs, (k + 1) / (n + 1), exact for continuous scores; 0 where
            infeasible.
        n_min: Smallest n that can certify alpha at delta.
        alpha_min: Smallest alpha that n scores can certify at delta.
    """

    status: Status
    threshold: float
    k: int
    n: int
    alpha: float
    delta: float
    mean_rate: float
    n_min: int
    alpha_min: float


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
    _check_levels(alpha, delta)
    # bdtrik inverts the binomial CDF in k; the neighbours settle its rounding.
    guess = float(bdtrik(delta, n, alpha))
    k = min(n - 1, math.floor(guess) + 1) if math.isfinite(guess) else n - 1
    while k >= 0 and float(bdtr(k, n, alpha)) > delta:
        k -= 1
    return k


def min_rows(alpha: float, delta: float) -> int:
    """Return the smallest n for which :func:`max_exceedances` is not -1: ceil(ln delta / ln(1 - alpha))."""
    _check_levels(alpha, delta)
    n = math.ceil(math.log(delta) / math.log1p(-alpha))
    # The logarithms round; (1 - alpha)^n <= delta is what counts.
    while n > 1 and float(bdtr(0, n - 1, alpha)) <= delta:
        n -= 1
    while float(bdtr(0, n, alpha)) > delta:
        n += 1
    return n


def min_alpha(n: int, delta: float) -> float:
    """Return the smallest alpha that n scores can certify at delta, 1 - delta^(1/n)."""
    if n < 1:
        return 1.0
    return -math.expm1(math.log(delta) / n)


def sort_scores(scores: FloatArray) -> FloatArray:
    """Return the scores in ascending order.

    Raises:
        DataError: There are none, or one is NaN or infinite; its row is named.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise DataError(f"delegation values form an array of shape {scores.shape}, not one column")
    if scores.size == 0:
        raise DataError("there are no delegation values", hint="A budget needs calibration rows")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise DataError(
            f"delegation value is {scores[bad[0]]}",
            row=int(bad[0]) + 1,
            hint="Delegation values must be finite numbers",
        )
    return np.sort(scores)


def certify(sorted_scores: FloatArray, alpha: float, delta: float) -> Certificate:
    """Return the smallest threshold whose delegation rate is certified to be at most alpha.

    lambda is the (n - k*)-th smallest score, so that exactly k* scores lie above it when there are no ties, and fewer
    when there are. Every larger threshold is certified by the same event, so choosing among those needs no
    correction.

    Args:
        sorted_scores: Delegation values of the calibration inputs in ascending order, as :func:`sort_scores` returns
            them, shape [n].
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1).

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
    """
    n = int(sorted_scores.size)
    k = max_exceedances(n, alpha, delta)
    feasible = k >= 0
    return Certificate(
        status=Status.CERTIFIED if feasible else Status.INFEASIBLE,
        threshold=float(sorted_scores[n - 1 - k]) if feasible else math.inf,
        k=k,
        n=n,
        alpha=alpha,
        delta=delta,
        mean_rate=(k + 1) / (n + 1) if feasible else 0.0,
        n_min=min_rows(alpha, delta),
        alpha_min=min_alpha(n, delta),
    )


def _check_levels(alpha: float, delta: float) -> None:
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise ConfigError(f"{value!r} is not between 0 and 1", key=name, hint=f"Set {name} to a share such as 0.1")
