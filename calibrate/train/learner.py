"""Heads of one kind or several, fitted to the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibrate.config.training import TrainOptions
from calibrate.train.linear import fit_linear
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import Target
from calibrate.train.tokens import fit_tokens
from calibrate.train.windows import choose_windows
from ctd_guardrail.probes.spec import Reduction

__all__ = ["Fit", "Learner", "mean_values"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Fit(Protocol):
    """Heads that were fitted together, of one kind."""

    def parts(self) -> list[Part]:
        """Return the components, whose sum they are."""
        ...

    def held_out(self) -> dict[str, FloatArray]:
        """Return each head's value for every training row, from fits that have not seen it, shape [rows]."""
        ...

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        """Return the values of heads without extra features for other rows, shape [rows]."""
        ...

    def record(self) -> dict[str, Any]:
        """Return how it was regularised, as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Learner:
    """Rows, and the window of each that linear heads and values are learnt from.

    Attributes:
        rows: The training rows.
        chosen: The window of each row that stands for it, shape [rows].
        kinds: Reductions, each of which every head is fitted with.
        options: How they are fitted.
        seed: The same rows and seed give the same heads.
    """

    rows: TrainingRows
    chosen: IntArray
    kinds: tuple[Reduction, ...]
    options: TrainOptions
    seed: int

    @classmethod
    def of(cls, rows: TrainingRows, kinds: tuple[Reduction, ...], options: TrainOptions, seed: int) -> Learner:
        """Choose the windows and return the learner."""
        return cls(rows, choose_windows(rows.pooled, rows.labels, rows.clusters, seed=seed), kinds, options, seed)

    def fit(self, targets: Mapping[str, Target], extras: FloatArray) -> list[Fit]:
        """Return one fit of each kind."""
        return [self._fit(kind, targets, extras) for kind in self.kinds]

    def _fit(self, kind: Reduction, targets: Mapping[str, Target], extras: FloatArray) -> Fit:
        if kind == "mean":
            return fit_linear(self.rows, targets, extras, chosen=self.chosen, seed=self.seed)
        seeds = self.options.seeds
        return fit_tokens(self.rows, kind, targets, extras, chosen=self.chosen, seed=self.seed, seeds=seeds)

    def no_extras(self) -> FloatArray:
        """Return no extra features, shape [rows, 0]."""
        return np.zeros((len(self.rows), 0))


def mean_values(values: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Return the mean of each head over several fits."""
    return {name: np.mean([each[name] for each in values], axis=0) for name in values[0]}
