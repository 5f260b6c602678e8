"""The window of a long row that the heads learn from: the window with the largest score.

A row's p is the maximum over its windows, so its label is a statement about that window alone: multiple-instance
learning (Andrews, Tsochantaridis and Hofmann 2002). A first fit to the rows' mean activations scores all windows. The
window with the largest score is chosen in every row, and the fit is repeated on the chosen windows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from sklearn.linear_model import LogisticRegression

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.logistic import fit_logistic
from calibrate.train.standardise import Standardiser
from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["choose_windows"]

# The choice does not change after that many rounds.
_ROUNDS: Final = 3
_ITERATIONS: Final = 2000


def choose_windows(pooled: PooledRows, labels: FloatArray, clusters: IntArray, *, seed: int) -> IntArray:
    """Return the index of one window of each row, shape [rows].

    Args:
        pooled: Activations of all windows.
        labels: 1 = unsafe, 0 = safe, shape [rows].
        clusters: Rows of one number stay in one fold, shape [rows].
        seed: Seed of the folds.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    if (pooled.windows == 1).all():
        return np.arange(len(pooled))
    windows = pooled.values.astype(np.float64)
    first = fit_logistic(_row_means(pooled), labels, clusters, seed=seed)
    chosen = _largest(first.logit(windows), pooled.row_of_window)
    for _ in range(_ROUNDS):
        standardise = Standardiser.fit(windows[chosen])
        model = LogisticRegression(C=first.record["C"], max_iter=_ITERATIONS)
        model.fit(standardise(windows[chosen]), labels)
        chosen = _largest(model.decision_function(standardise(windows)), pooled.row_of_window)
    return chosen


def _largest(scores: FloatArray, owner: IntArray) -> IntArray:
    """Return the index of each row's window with the largest score, shape [rows]; ``owner`` is ascending."""
    order = np.lexsort((scores, owner))
    return order[np.flatnonzero(np.diff(owner[order], append=-1))]


def _row_means(pooled: PooledRows) -> FloatArray:
    """Return the mean over all tokens of each row, shape [rows, width]."""
    starts = np.cumsum(pooled.windows) - pooled.windows
    weights = pooled.lengths.astype(np.float64)
    means: FloatArray = np.add.reduceat(pooled.values * weights[:, None], starts)
    return means / np.add.reduceat(weights, starts)[:, None]
