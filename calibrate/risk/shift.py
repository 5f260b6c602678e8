"""A budget for a deployment that weights the inputs differently from calibration, by known weights.

Calibration rows come from a density q, the deployment from w q / E[w]: for example more of one language, or unsafe
inputs rarer than in a balanced calibration set. Keeping each row with probability w / W turns rows of q into
independent rows of the deployment (von Neumann 1951; arXiv 2106.09848 for calibration), after which the closed form is
exact again. The price is rows: E[w] / W of them are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Certificate, certify, sort_scores

__all__ = ["certify_shifted", "thin"]

FloatArray = NDArray[np.float64]


def thin(weights: FloatArray, bound: float, *, seed: int = 0) -> NDArray[np.intp]:
    """Return the rows that rejection sampling keeps, ascending.

    Args:
        weights: Known weights w of the rows, up to a common factor, shape [n]. Estimated ones void the guarantee.
        bound: W, at least every weight that the deployment can have. It must be known beforehand; the largest weight
            of these rows is not a bound.
        seed: Seed of the sampling.

    Raises:
        ConfigError: The bound is not positive.
        DataError: A weight is NaN, negative or above the bound; its row is named.
    """
    if not bound > 0.0:
        raise ConfigError(f"{bound!r} is not a bound on the weights", key="bound", hint="Give the largest weight")
    bad = np.flatnonzero(~((weights >= 0.0) & (weights <= bound)))
    if bad.size:
        raise DataError(f"weight is {weights[bad[0]]}, not in [0, {bound}]", row=int(bad[0]) + 1)
    return np.flatnonzero(np.random.default_rng(seed).random(weights.size) * bound < weights)


def certify_shifted(
    scores: FloatArray, weights: FloatArray, alpha: float, delta: float, *, bound: float, seed: int = 0
) -> Certificate:
    """Return a certificate for the deployment that the weights describe.

    Args:
        scores: Delegation values of calibration rows, shape [n].
        weights: Their weights, shape [n], see :func:`thin`.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1).
        bound: W, see :func:`thin`.
        seed: Seed of the sampling, chosen without looking at the scores.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1), or the bound is not positive.
        DataError: A row's score or weight is invalid, or no row is kept.
    """
    if scores.shape != weights.shape:
        raise DataError(f"there are {weights.size} weights for {scores.size} delegation values")
    sort_scores(scores)  # for its checks, while row numbers mean rows of the whole column
    kept = thin(weights, bound, seed=seed)
    if not kept.size:
        raise DataError("no row is left after weighting", hint="Give more rows, or a tighter bound on the weights")
    return certify(np.sort(scores[kept]), alpha, delta)
