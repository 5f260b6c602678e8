"""Labelled rows for a training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.crossfit import check_classes
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["SafetyRows", "TrainingRows", "as_pooled", "check_rows", "over_rows"]


@dataclass(frozen=True, slots=True)
class SafetyRows:
    """Rows of another source that the safety probe is trained on.

    Attributes:
        pooled: Mean-pooled activations of every window, or shape [n, width] for rows of one window.
        labels: 1 = unsafe, 0 = safe, shape [n].
        clusters: Rows of one number are dependent, shape [n].
        tokens: Token activations of each row's windows; None if no kind of probe reads them.
    """

    pooled: PooledRows | Float32Array
    labels: FloatArray
    clusters: IntArray
    tokens: list[Ragged] | None = None


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Labelled rows, column by column.

    Attributes:
        pooled: Mean-pooled activations of every window.
        labels: 1 = unsafe, 0 = safe, shape [rows].
        clusters: Rows of one number are dependent, shape [rows].
        expert: The expert's P(unsafe), shape [rows]. Not used for rows that train the safety probe alone.
        tokens: Token activations of each row's windows; None if no kind of probe reads them.
    """

    pooled: PooledRows
    labels: FloatArray
    clusters: IntArray
    expert: FloatArray
    tokens: list[Ragged] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.labels.size

    def take(self, rows: IntArray) -> TrainingRows:
        """Return some of the rows, in this order."""
        tokens = None if self.tokens is None else [self.tokens[row] for row in rows.tolist()]
        return TrainingRows(self.pooled.take(rows), self.labels[rows], self.clusters[rows], self.expert[rows], tokens)

    def beside(self, others: TrainingRows) -> TrainingRows:
        """Return these rows and then the others, without token activations. No other row depends on one of these."""
        return TrainingRows(
            PooledRows.concatenate([self.pooled, others.pooled]),
            np.append(self.labels, others.labels),
            np.append(self.clusters, others.clusters + self.clusters.max() + 1),
            np.append(self.expert, others.expert),
        )

    def columns(self, keep: IntArray) -> TrainingRows:
        """Return all rows with some columns of the activations."""
        if keep.size == self.pooled.values.shape[1]:
            return self
        tokens = None if self.tokens is None else [Ragged(row.values[:, keep], row.lengths) for row in self.tokens]
        return TrainingRows(self.pooled.columns(keep), self.labels, self.clusters, self.expert, tokens)


def as_pooled(features: PooledRows | Float32Array) -> PooledRows:
    """Wrap vectors of rows of one window. Their lengths are not known and set to one token."""
    if isinstance(features, PooledRows):
        return features
    ones = np.ones(len(features), dtype=np.int64)
    return PooledRows(features, ones, ones)


def over_rows(scores: FloatArray, windows: IntArray) -> FloatArray:
    """Return the largest score of each row, shape [rows], from one score a window.

    Args:
        scores: Shape [windows of all rows].
        windows: Windows of each row, shape [rows].
    """
    return np.maximum.reduceat(scores, np.cumsum(windows) - windows)


def check_rows(rows: TrainingRows, *, purpose: str) -> None:
    """Refuse rows that cannot train a probe.

    Raises:
        DataError: Columns differ in length, a value is not finite or out of range, or a class has too few rows.
    """
    labels, values = rows.labels, rows.pooled.values
    sizes = {labels.size, rows.clusters.size, len(rows.pooled)}
    if values.ndim != 2 or labels.ndim != 1 or len(sizes) > 1:  # noqa: PLR2004  # a matrix
        raise DataError(
            f"the rows for {purpose} are {labels.size} labels, {rows.clusters.size} clusters and "
            f"activations {values.shape}"
        )
    if not np.isin(labels, (0.0, 1.0)).all():
        raise DataError(f"a label of the rows for {purpose} is neither 0 nor 1")
    if rows.expert.shape != labels.shape or not ((rows.expert >= 0.0) & (rows.expert <= 1.0)).all():
        raise DataError(f"expert scores are not {labels.size} numbers in [0, 1]", hint="Give P(unsafe), one a row")
    if not np.isfinite(values).all():
        raise DataError(
            f"the activations of the rows for {purpose} are not all finite",
            hint="Run the base model in float32 or bfloat16: float16 overflows in some models",
        )
    check_classes(labels, purpose=purpose)
