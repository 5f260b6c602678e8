"""The delegation values of the paper (arXiv 2604.14251, section 4), on mean activations as they are.

The continuous target is v = (2y - 1)(m - p), by ridge regression. The binary target is 1[probe wrong and expert right],
by logistic regression. It is never negative, so it does not show harm.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from sklearn.linear_model import Ridge

from calibrate.train.logistic import fit_logistic
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray

__all__ = ["fit_binary_value", "fit_ridge_value"]


# Activations are neither standardised nor is the penalty cross-validated.
_RIDGE_PENALTY: Final = 1.0
# Fewer examples of a class are noise to a logistic regression with five folds.
_FEWEST_ROWS: Final = 10
# Scores of at least this much block.
_TAU: Final = 0.5


def fit_ridge_value(means: Float32Array, labels: FloatArray, p: FloatArray, merged: FloatArray) -> Ridge:
    """Return the ridge regression of v on mean activations.

    Args:
        means: Mean activations of the training rows, shape [n, width].
        labels: 1 = unsafe, 0 = safe, shape [n].
        p: Out-of-sample score of the safety probe, shape [n].
        merged: The cascade's score of a delegated row, shape [n].
    """
    return Ridge(_RIDGE_PENALTY).fit(means, (2.0 * labels - 1.0) * (merged - p))


def fit_binary_value(
    means: Float32Array,
    labels: FloatArray,
    p: FloatArray,
    merged: FloatArray,
    *,
    clusters: IntArray,
    fresh: Float32Array,
    seed: int,
) -> FloatArray | None:
    """Return P(probe wrong and expert right) of other rows, as a logit, shape [m].

    Return None if the expert corrects the probe on fewer than ten training rows, or on all but fewer than ten.

    Args:
        means: Mean activations of the training rows, shape [n, width].
        labels: 1 = unsafe, 0 = safe, shape [n].
        p: Out-of-sample score of the safety probe, shape [n].
        merged: The cascade's score of a delegated row, shape [n].
        clusters: Rows with one number stay in one fold, shape [n].
        fresh: Mean activations of the other rows, shape [m, width].
        seed: Seed of the folds.
    """
    unsafe = labels == 1
    corrected = ((p >= _TAU) != unsafe) & ((merged >= _TAU) == unsafe)
    if not _FEWEST_ROWS <= corrected.sum() <= corrected.size - _FEWEST_ROWS:
        return None
    fitted = fit_logistic(means.astype(np.float64), corrected.astype(np.float64), clusters, seed=seed)
    return fitted.logit(fresh.astype(np.float64))
