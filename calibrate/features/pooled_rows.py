"""Mean-pooled activations of rows, each of one window or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.probes.windows import over_windows

__all__ = ["PooledRows"]


@dataclass(frozen=True, slots=True)
class PooledRows:
    """Mean-pooled activations of every window. The windows of a row are neighbours.

    Attributes:
        values: Mean over each window's tokens, shape [windows of all rows, width].
        lengths: Tokens of each window, shape [windows of all rows].
        windows: Windows of each row, at least one, shape [rows].
    """

    values: Float32Array
    lengths: IntArray
    windows: IntArray

    @classmethod
    def concatenate(cls, parts: Sequence[PooledRows]) -> PooledRows:
        """Return the rows of all parts, one part after the other."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.windows for part in parts]),
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.windows.size

    @property
    def row_of_window(self) -> IntArray:
        """The row of each window, shape [windows of all rows]."""
        return np.repeat(np.arange(len(self)), self.windows)

    def take(self, rows: IntArray) -> PooledRows:
        """Return some rows, in this order."""
        counts = self.windows[rows]
        # Window j of a row lies j places after the row's first.
        first = (np.cumsum(self.windows) - self.windows)[rows]
        place = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return PooledRows(self.values[place], self.lengths[place], counts)

    def columns(self, keep: IntArray) -> PooledRows:
        """Return the same windows with some of the columns of the activations."""
        return PooledRows(self.values[:, keep], self.lengths, self.windows)

    def over_windows(self, scores: FloatArray) -> FloatArray:
        """Return the scores (p, d) of the rows, shape [rows, 2], from those of their windows."""
        return np.stack([over_windows(part) for part in np.split(scores, np.cumsum(self.windows)[:-1])])
