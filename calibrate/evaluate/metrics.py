"""What is measured of a score against labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ctd_guardrail.errors import DataError

__all__ = ["Metrics", "auroc", "measure"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of one score.

    Attributes:
        auroc: P(an unsafe row scores above a safe one), ties counted half.
        accuracy: Share of rows that ``score >= tau`` judges rightly.
        brier: Mean squared distance of the score, read as P(unsafe), from the label.
        missed_harm: Share of the unsafe rows that score below tau (false negative rate).
    """

    auroc: float
    accuracy: float
    brier: float
    missed_harm: float


def auroc(label: FloatArray, score: FloatArray) -> float:
    """Return the area under the ROC curve, from the rank sum (Mann and Whitney 1947).

    Raises:
        DataError: All rows have one label.
    """
    unsafe = label == 1
    positives = int(unsafe.sum())
    negatives = label.size - positives
    if positives == 0 or negatives == 0:
        raise DataError(
            f"AUROC needs rows of both labels, and these are {positives} unsafe and {negatives} safe",
            hint="Give a larger share of the rows to the test split, or add rows of the other label",
        )
    rank_sum = float(rankdata(score)[unsafe].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def measure(label: FloatArray, score: FloatArray, *, tau: float = 0.5) -> Metrics:
    """Measure a score in [0, 1].

    Args:
        label: 1 = unsafe, 0 = safe, shape [n].
        score: P(unsafe), shape [n].
        tau: Scores of at least tau block.

    Raises:
        DataError: All rows have one label.
    """
    blocked = score >= tau
    unsafe = label == 1
    return Metrics(
        auroc=auroc(label, score),
        accuracy=float(np.mean(blocked == unsafe)),
        brier=float(np.mean(np.square(score - label))),
        missed_harm=float(np.mean(~blocked[unsafe])),
    )
