"""Heads of one kind or several, trained on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from calibrate.train.linear import fit_linear
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import Target
from calibrate.train.tokens import fit_tokens
from calibrate.train.windows import choose_windows
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.probes.spec import Reduction

__all__ = ["Fit", "Learner", "mean_values"]


class Fit(Protocol):
    """Heads of one kind that were trained together."""

    def parts(self) -> list[Part]:
        """Return the components of the heads."""
        ...

    def held_out(self) -> dict[str, FloatArray]:
        """Return the value of each head for every training row, from fits that have not seen it, shape [rows]."""
        ...

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        """Return the value of each head for other rows, shape [rows]."""
        ...

    def record(self) -> dict[str, Any]:
        """Return the regularisation, as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Learner:
    """Training rows, the window of each row that the heads learn from, and the kinds of heads.

    Attributes:
        rows: The training rows.
        chosen: The window of each row that the heads learn from, shape [rows].
        kinds: Reductions. Every head is trained with each of them.
        seed: The same rows and seed give the same heads.
    """

    rows: TrainingRows
    chosen: IntArray
    kinds: tuple[Reduction, ...]
    seed: int

    @classmethod
    def of(
        cls, rows: TrainingRows, kinds: tuple[Reduction, ...], seed: int, *, columns: IntArray | None = None
    ) -> Learner:
        """Choose the window of each row, by these columns of the activations, and return the learner."""
        read = rows if columns is None else rows.columns(columns)
        return cls(rows, choose_windows(read.pooled, rows.labels, rows.clusters, seed=seed), kinds, seed)

    def fit(self, targets: Mapping[str, Target]) -> list[Fit]:
        """Return one fit of each kind."""
        return [self._fit(kind, targets) for kind in self.kinds]

    def _fit(self, kind: Reduction, targets: Mapping[str, Target]) -> Fit:
        if kind == "mean":
            return fit_linear(self.rows, targets, chosen=self.chosen, seed=self.seed)
        return fit_tokens(self.rows, kind, targets, chosen=self.chosen, seed=self.seed)


def mean_values(values: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Return the mean of each head over several fits."""
    return {name: np.mean([each[name] for each in values], axis=0) for name in values[0]}
