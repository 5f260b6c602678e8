"""Conformal p-values of a stream of scores, in memory that does not grow."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.state import SavedState, State, fingerprint
from ctd_guardrail.policy.budget import sort_scores

__all__ = ["MAX_REFERENCE", "ConformalPValues", "finite_score"]

# More calibration scores than this do not improve the alarms. A random subset of them is exchangeable with the stream,
# as all of them are.
MAX_REFERENCE: Final = 2000


def finite_score(d: float) -> float:
    """Return d.

    Raises:
        DataError: It is NaN or infinite.
    """
    if not math.isfinite(d):
        raise DataError(f"delegation value is {d}", hint="Delegation values must be finite numbers")
    return d


class ConformalPValues:
    """Ranks each score among the calibration scores and all scores before it.

    With N scores seen, calibration included, g of them above d_t and m equal to it,

        p_t = (g + U_t (m + 1)) / (N + 1),    U_t uniform on (0, 1),

    small for large scores. If calibration and stream are exchangeable, p_1, p_2, ... are independent and uniform,
    whatever the law of the scores (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, section 2 and
    theorem 8.1).

    The stream is not stored. The distinct calibration scores cut the line into points and open gaps, each with a
    count. Scores in one gap are treated as equal. This does not change the law of p_t: given the calibration scores
    and the cell of each stream score, the scores within a gap are exchangeable. So the exact p_t is uniform over the
    ranks of its cell, and p_t is drawn in this way. The scores need not be continuous and may have ties.

    Args:
        scores: Delegation values of the calibration inputs, shape [n]. Of more than 2,000, a random 2,000 are used.
        seed: Seed of that choice and of U_t, a whole number of at least 0.

    Attributes:
        seed: The argument of the same name.

    Raises:
        DataError: There are no scores, or one is NaN or infinite; its row is named.
    """

    def __init__(self, scores: FloatArray, *, seed: int) -> None:
        reference = sort_scores(scores)
        if reference.size > MAX_REFERENCE:
            subset = np.random.default_rng([seed, 0])
            reference = np.sort(subset.choice(reference, MAX_REFERENCE, replace=False))
        cuts, multiplicity = np.unique(reference, return_counts=True)
        counts = np.zeros(2 * cuts.size + 1, dtype=np.int64)
        counts[1::2] = multiplicity
        self.seed = seed
        self._reference = fingerprint(reference)
        self._cuts: list[float] = cuts.tolist()
        # Cell 2 i + 1 is the i-th distinct calibration score, cell 2 i the gap below it.
        self._cell_counts = counts
        self._total = int(reference.size)
        self._seen = 0
        self._bits = np.random.PCG64([seed, 1])
        self._uniform = np.random.Generator(self._bits).random

    def update(self, d: float) -> float:
        """Take one score and return its p-value, in [0, 1).

        Raises:
            DataError: It is NaN or infinite.
        """
        index = bisect_left(self._cuts, finite_score(d))
        cell = 2 * index + (index < len(self._cuts) and self._cuts[index] == d)
        above = int(self._cell_counts[cell + 1 :].sum())
        p = (above + self._uniform() * (int(self._cell_counts[cell]) + 1)) / (self._total + 1)
        self._cell_counts[cell] += 1
        self._total += 1
        self._seen += 1
        return p

    def state(self) -> State:
        """Return everything that the next update depends on but the calibration scores, as plain JSON values."""
        return {
            "seed": self.seed,
            "seen": self._seen,
            "reference": self._reference,
            "counts": self._cell_counts.tolist(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], scores: FloatArray) -> Self:
        """Return the object that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            scores: The calibration scores that it was made with.

        Raises:
            DataError: The state is not one of this object on these scores.
        """
        saved = SavedState(state, "conformal p-values", ("seed", "seen", "reference", "counts"))
        values = cls(scores, seed=saved.integer("seed"))
        cls._resume(values, saved)
        return values

    def _resume(self, saved: SavedState) -> None:
        saved.check_scores("reference", self._reference)
        self._cell_counts = saved.numbers("counts", self._cell_counts.shape).astype(np.int64)
        self._total = int(self._cell_counts.sum())
        self._seen = saved.integer("seen")
        # Each update draws one number. Skipping the earlier draws continues the sequence.
        self._bits.advance(self._seen)
