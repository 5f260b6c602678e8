"""Figures of a score against labels, and the influence of each row on each figure.

To first order, every figure is a mean over the rows of their influences: leaving a row out moves the figure as it moves
that mean. One column of influences therefore gives the standard error of the figure, of a difference between two
methods on the same rows, of an area under a curve, and of a ratio. Each error is a sum over clusters (the infinitesimal
jackknife, which the bootstrap over clusters approaches). For AUROC this is the method of DeLong, DeLong and
Clarke-Pearson (1988), with clusters as in Obuchowski (1997). No random numbers are drawn.

The delegated rows are taken as given: the error is that of the test rows, for this policy. The variation between
training or calibration samples shows only over several seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import rankdata

from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.errors import DataError

__all__ = [
    "FIGURES",
    "Estimate",
    "Figure",
    "cluster_error",
    "divide",
    "integrate",
    "mean_of",
    "measure",
]


FIGURES: Final = {
    "auroc": "P(an unsafe row scores above a safe one), ties counted half",
    "accuracy": "share of the rows with a right verdict",
    "brier": "mean squared distance of the score from the label",
    "missed_harm": "share of the unsafe rows that are let through (false negative rate)",
}
"""Figures of the tables: name -> meaning. :func:`measure` returns ``false_alarms`` as well."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: The number.
        error: Its standard error over clusters of rows; NaN for a single cluster.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A number measured on rows, and the influence of each row on it.

    Attributes:
        value: The number.
        influence: Influence of each row, of mean 0, shape [n].
        clusters: Cluster of each row, shape [n].
    """

    value: float
    influence: FloatArray
    clusters: IntArray

    @property
    def error(self) -> float:
        """Standard error over the clusters of the rows; NaN for a single cluster."""
        return cluster_error(self.influence, self.clusters)

    @property
    def estimate(self) -> Estimate:
        """The number and its standard error, without the influences."""
        return Estimate(self.value, self.error)

    def __sub__(self, other: Figure) -> Figure:
        """Return the paired difference on the same rows."""
        return Figure(self.value - other.value, self.influence - other.influence, self.clusters)

    def __neg__(self) -> Figure:
        """Return the figure with the opposite sign."""
        return Figure(-self.value, -self.influence, self.clusters)


def measure(label: FloatArray, score: FloatArray, clusters: IntArray, *, tau: float) -> dict[str, Figure]:
    """Measure a score: the figures of :data:`FIGURES`, and ``false_alarms``, the share of the safe rows that block.

    Args:
        label: 1 = unsafe, 0 = safe, shape [n].
        score: P(unsafe), shape [n].
        clusters: Cluster of each row, shape [n].
        tau: A score of at least tau blocks.

    Raises:
        DataError: All rows have one label.
    """
    unsafe = label == 1
    blocked = score >= tau
    return {
        "auroc": _auroc(unsafe, score, clusters),
        "accuracy": mean_of(blocked == unsafe, clusters),
        "brier": mean_of(np.square(score - label), clusters),
        "missed_harm": mean_of(~blocked, clusters, chosen=unsafe),
        "false_alarms": mean_of(blocked, clusters, chosen=~unsafe),
    }


def mean_of(values: FloatArray | BoolArray, clusters: IntArray, *, chosen: BoolArray | None = None) -> Figure:
    """Return a mean over rows.

    Args:
        values: Shape [n].
        clusters: Shape [n].
        chosen: The rows that the mean is taken over, at least one, shape [n]; None takes all.
    """
    members = np.ones(values.size, dtype=np.bool_) if chosen is None else chosen
    mean = float(np.mean(values[members]))
    return Figure(mean, np.where(members, values - mean, 0.0) / members.mean(), clusters)


def cluster_error(influence: FloatArray, clusters: IntArray) -> float:
    """Return the standard error of a figure from its influences; NaN for a single cluster.

    Args:
        influence: Shape [n], of mean 0.
        clusters: Rows with one number depend on each other, shape [n].
    """
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=influence)
    if sums.size == 1:
        return float("nan")
    return float(np.sqrt(np.square(sums).sum() * sums.size / (sums.size - 1)) / influence.size)


def integrate(figures: Sequence[Figure], at: Sequence[float]) -> Figure:
    """Return the area under a curve of figures on the same rows, by the trapezoid rule.

    Args:
        figures: One for each point.
        at: Where the points lie, ascending.
    """
    values, influences = [each.value for each in figures], np.array([each.influence for each in figures])
    return Figure(float(np.trapezoid(values, at)), np.trapezoid(influences, at, axis=0), figures[0].clusters)


def divide(one: Figure, other: Figure) -> Figure:
    """Return the ratio of two figures on the same rows, with its error by the delta method; NaN over 0."""
    if not other.value:
        return Figure(float("nan"), np.full_like(one.influence, np.nan), one.clusters)
    ratio = one.value / other.value
    return Figure(ratio, (one.influence - ratio * other.influence) / other.value, one.clusters)


def _auroc(unsafe: BoolArray, score: FloatArray, clusters: IntArray) -> Figure:
    """Return the area under the ROC curve, from the rank sum (Mann and Whitney 1947)."""
    positives = int(unsafe.sum())
    negatives = unsafe.size - positives
    if positives == 0 or negatives == 0:
        raise DataError(
            f"AUROC needs rows of both labels, but these are {positives} unsafe and {negatives} safe",
            hint="Give a larger share of the rows to the test split, or add rows of the other label",
        )
    rank = rankdata(score)
    area = (float(rank[unsafe].sum()) - positives * (positives + 1) / 2) / (positives * negatives)
    # Of each row, the share of the rows of the other label that it is ranked rightly against.
    placement = np.empty(score.size)
    placement[unsafe] = (rank[unsafe] - rankdata(score[unsafe])) / negatives
    placement[~unsafe] = 1.0 - (rank[~unsafe] - rankdata(score[~unsafe])) / positives
    share = unsafe.mean()
    return Figure(area, (placement - area) / np.where(unsafe, share, 1.0 - share), clusters)
