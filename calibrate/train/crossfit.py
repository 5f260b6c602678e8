"""Folds that keep dependent rows together.

A score is out of sample only if its model saw neither the row nor a near-duplicate of it. So whole clusters are
assigned to folds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import DataError

__all__ = ["FOLDS", "assign_folds", "check_classes"]

FOLDS: Final = 5
# With fewer rows of a class, a fold may hold none of them, and a regression on that class alone is noise.
_FEWEST_ROWS: Final = 10


def check_classes(labels: FloatArray, *, purpose: str) -> None:
    """Refuse rows that have too few rows of a class.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n].
        purpose: Purpose of the rows, for the error message.

    Raises:
        DataError: A class has fewer than ten rows.
    """
    for label, name in ((1, "unsafe"), (0, "safe")):
        count = int(np.count_nonzero(labels == label))
        if count < _FEWEST_ROWS:
            raise DataError(
                f"the rows for {purpose} hold {count} with label {label} ({name}), but {_FEWEST_ROWS} are needed",
                hint="Add labelled rows of that class, or give a larger share of the rows to training",
            )


def assign_folds(labels: FloatArray, clusters: IntArray, *, seed: int) -> IntArray:
    """Return the fold of each row, 0 to FOLDS - 1, shape [n].

    Clusters are assigned in random order, those with an unsafe row first, so that every fold gets its share of them.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n].
        clusters: Rows with one number are near-duplicates or turns of one conversation, shape [n].
        seed: Seed of the order.

    Raises:
        DataError: The clusters are so few or so large that the rows outside some fold are of one class.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    unsafe = np.bincount(cluster, weights=labels) > 0
    order = np.lexsort((np.random.default_rng(seed).random(unsafe.size), ~unsafe))
    fold_of_cluster = np.empty(unsafe.size, dtype=np.int64)
    fold_of_cluster[order] = np.arange(unsafe.size) % FOLDS
    folds = fold_of_cluster[cluster]
    if any(np.unique(labels[folds != fold]).size < 2 for fold in range(FOLDS)):  # noqa: PLR2004  # two classes
        raise DataError(
            f"{unsafe.size} clusters of dependent rows cannot be cut into {FOLDS} folds with both labels outside each",
            hint="Add rows that are not near-duplicates of these, of both labels",
        )
    return folds
