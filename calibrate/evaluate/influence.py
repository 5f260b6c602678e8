"""Figures of a score with standard errors that respect clusters.

Every figure here is, to first order, a mean over the rows of their influences: dropping rows at random moves it as it
moves that mean. So one column of influences per figure gives its standard error, that of a difference between two
methods on the same rows, of an area under a curve and of a ratio, each from sums over clusters (the infinitesimal
jackknife, which the bootstrap over clusters approaches; for AUROC: DeLong, DeLong and Clarke-Pearson 1988, with
clusters: Obuchowski 1997). Nothing is drawn, so nothing depends on a seed.

The rows that are delegated count as given: the error is that of the test rows, for this policy. That another training
or calibration sample would have given another policy shows only over several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from calibrate.evaluate.metrics import Metrics, measure

__all__ = ["FIGURES", "Influences", "cluster_error", "mean_error", "measure_with_influence"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Influences = Mapping[str, FloatArray]

FIGURES: Final = {
    "auroc": "P(an unsafe row scores above a safe one), ties counted half",
    "accuracy": "share of the rows that are judged rightly",
    "brier": "mean squared distance of the score from the label",
    "missed_harm": "share of the unsafe rows that are let through (false negative rate)",
}


def measure_with_influence(label: FloatArray, score: FloatArray, *, tau: float) -> tuple[Metrics, Influences]:
    """Measure a score and return each row's influence on each figure, each of shape [n] and mean 0.

    Args:
        label: 1 = unsafe, shape [n].
        score: P(unsafe), shape [n].
        tau: Scores of at least tau block.

    Raises:
        DataError: All rows have one label.
    """
    metrics = measure(label, score, tau=tau)
    unsafe = label == 1
    share = unsafe.mean()
    blocked = score >= tau
    return metrics, {
        "auroc": (_placements(unsafe, score) - metrics.auroc) / np.where(unsafe, share, 1.0 - share),
        "accuracy": (blocked == unsafe) - metrics.accuracy,
        "brier": np.square(score - label) - metrics.brier,
        "missed_harm": np.where(unsafe, ~blocked - metrics.missed_harm, 0.0) / share,
    }


def cluster_error(influence: FloatArray, clusters: IntArray) -> float:
    """Return the standard error of a figure from its influences; NaN for a single cluster.

    Args:
        influence: Shape [n], of mean 0.
        clusters: Rows of one number depend on each other, shape [n].
    """
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=influence)
    if sums.size == 1:
        return float("nan")
    return float(np.sqrt(np.square(sums).sum() * sums.size / (sums.size - 1)) / influence.size)


def mean_error(values: FloatArray, chosen: BoolArray, clusters: IntArray) -> tuple[float, float]:
    """Return the mean of the chosen rows' values and its standard error; NaN where there are none.

    Args:
        values: Shape [n].
        chosen: Shape [n].
        clusters: Shape [n].
    """
    if not chosen.any():
        return float("nan"), float("nan")
    mean = float(values[chosen].mean())
    return mean, cluster_error(values[chosen] - mean, clusters[chosen])


def _placements(unsafe: BoolArray, score: FloatArray) -> FloatArray:
    """Return, for each row, the share of rows of the other label that it stands on the right side of, shape [n]."""
    overall = rankdata(score)
    placement = np.empty(score.size)
    within = rankdata(score[unsafe])
    placement[unsafe] = (overall[unsafe] - within) / (~unsafe).sum()
    within = rankdata(score[~unsafe])
    placement[~unsafe] = 1.0 - (overall[~unsafe] - within) / unsafe.sum()
    return placement
