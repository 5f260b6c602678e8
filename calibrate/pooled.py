"""Mean-pooled activations of rows, each of one window or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail.probes.windows import over_windows

__all__ = ["PooledRows"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PooledRows:
    """Mean-pooled activations of every window; the windows of a row lie side by side.

    Attributes:
        values: Mean over each window's tokens, shape [windows, width].
        owner: Row of each window, ascending from 0 without a gap, shape [windows].
        lengths: Tokens of each window, shape [windows].
    """

    values: NDArray[np.float32]
    owner: IntArray
    lengths: IntArray

    @classmethod
    def one_window_each(cls, values: NDArray[np.float32]) -> PooledRows:
        """Wrap rows of one window whose length is not known, and taken to be one token."""
        rows = np.arange(len(values), dtype=np.int64)
        return cls(values, rows, np.ones_like(rows))

    @classmethod
    def concatenate(cls, parts: Sequence[PooledRows]) -> PooledRows:
        """Return the rows of all parts, one part after the other."""
        starts = np.cumsum([0, *(part.rows for part in parts)])
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.owner + start for part, start in zip(parts, starts[:-1], strict=True)]),
            np.concatenate([part.lengths for part in parts]),
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.owner[-1]) + 1 if self.owner.size else 0

    @property
    def tokens(self) -> IntArray:
        """Tokens of each row, shape [rows]."""
        return np.bincount(self.owner, weights=self.lengths, minlength=self.rows).astype(np.int64)

    def take(self, rows: IntArray) -> PooledRows:
        """Return some rows, in this order."""
        starts = np.searchsorted(self.owner, rows)
        counts = np.searchsorted(self.owner, rows, side="right") - starts
        owner = np.repeat(np.arange(rows.size, dtype=np.int64), counts)
        windows = np.arange(owner.size) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
        return PooledRows(self.values[windows], owner, self.lengths[windows])

    def columns(self, keep: IntArray) -> PooledRows:
        """Return the same windows with some of the columns."""
        if keep.size == self.values.shape[1]:
            return self
        return PooledRows(self.values[:, keep], self.owner, self.lengths)

    def over_windows(self, scores: FloatArray) -> FloatArray:
        """Return the scores (p, d) of the rows, shape [rows, 2], from those of their windows, shape [windows, 2]."""
        cuts = np.flatnonzero(np.diff(self.owner)) + 1
        return np.stack([over_windows(part) for part in np.split(scores, cuts)])
