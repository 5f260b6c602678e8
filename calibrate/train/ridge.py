"""Ridge regression whose penalty is chosen by leaving out one cluster at a time, in closed form.

Let H be the hat matrix of a penalty and r = y - Hy the residuals of the fit to all rows. The residuals of cluster c in
the fit without it are exactly (I - H_cc)^-1 r_c (Allen 1974 for single rows; Cook and Weisberg 1982, section 3.6, for
groups). One eigendecomposition serves all penalties, and no folds are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["PENALTIES", "Ridge", "fit_ridge"]

# Per row, in units of a feature's variance: a penalty of 1 is a prior as strong as all rows together.
PENALTIES: Final = tuple(float(penalty) for penalty in np.logspace(-3, 2, 11))
# Directions with a smaller share of the largest variance are rounding errors.
_RANK_TOLERANCE: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted regression.

    Attributes:
        weight: Coefficients, shape [d].
        bias: Intercept; it is not penalised.
        penalty: The chosen one of :data:`PENALTIES`.
        left_out: Prediction for each row from a fit without its cluster, shape [n].
        errors: Mean squared error of those predictions for each of :data:`PENALTIES`.
    """

    weight: FloatArray
    bias: float
    penalty: float
    left_out: FloatArray
    errors: tuple[float, ...]


def fit_ridge(features: FloatArray, target: FloatArray, clusters: IntArray) -> Ridge:
    """Minimise ``mean (target - w . x - b)^2 + penalty |w|^2``, with the penalty that predicts left-out clusters best.

    Args:
        features: Columns of comparable scale, shape [n, d].
        target: Shape [n].
        clusters: Rows of one number are left out together, shape [n]; at least two numbers.
    """
    rows = target.size
    centre, level = features.mean(axis=0), float(target.mean())
    centred, deviation = features - centre, target - level
    basis, variance = _principal_directions(centred)
    scores = centred @ basis
    moment = scores.T @ deviation
    shrinkage = 1.0 / (variance[:, None] + rows * np.array(PENALTIES))  # [rank, penalties]
    residuals = deviation[:, None] - scores @ (shrinkage * moment[:, None])
    left_out = _leave_out(residuals, scores, shrinkage, clusters)
    errors = np.square(left_out).mean(axis=0)
    best = int(errors.argmin())
    weight = basis @ (shrinkage[:, best] * moment)
    return Ridge(
        weight=weight,
        bias=level - float(centre @ weight),
        penalty=PENALTIES[best],
        left_out=target - left_out[:, best],
        errors=tuple(errors.tolist()),
    )


def _principal_directions(centred: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return orthonormal directions, shape [d, rank], and the sums of squares along them, shape [rank]."""
    rows, width = centred.shape
    variance, vectors = np.linalg.eigh(centred.T @ centred if width <= rows else centred @ centred.T)
    kept = variance > _RANK_TOLERANCE * max(float(variance[-1]), np.finfo(np.float64).tiny)
    variance, vectors = variance[kept], vectors[:, kept]
    return (vectors if width <= rows else centred.T @ vectors / np.sqrt(variance)), variance


def _leave_out(residuals: FloatArray, scores: FloatArray, shrinkage: FloatArray, clusters: IntArray) -> FloatArray:
    """Return the residuals of each cluster under the fits without it, shape [n, penalties]."""
    rows = scores.shape[0]
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    # The unpenalised intercept adds 1/n to every entry of the hat matrix.
    left_out: FloatArray = residuals / (1.0 - 1.0 / rows - np.square(scores) @ shrinkage)
    for number in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(cluster == number)
        part = scores[members]
        hat = 1.0 / rows + (part * shrinkage.T[:, None, :]) @ part.T  # [penalties, members, members]
        left_out[members] = np.linalg.solve(np.eye(members.size) - hat, residuals[members].T[:, :, None])[:, :, 0].T
    return left_out
