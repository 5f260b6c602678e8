"""The safety probe: p = P(unsafe), from some of the layers that the delegation heads read.

The safety probe may do best on one layer, while the delegation heads read several. One forward pass computes all of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from calibrate.train.learner import Fit, Learner, mean_values
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import label_target
from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["SafetyProbe", "fit_probe"]


@dataclass(frozen=True)
class SafetyProbe:
    """The safety probe, and its out-of-sample scores of the rows that delegation is learnt on.

    Attributes:
        fits: One fit of each kind.
        rows: The rows that delegation is learnt on.
        is_own: Whether the probe was trained on these rows.
    """

    fits: Sequence[Fit]
    rows: TrainingRows
    is_own: bool

    @cached_property
    def logit(self) -> FloatArray:
        """Logit of p for each row, from fits that have not seen it. Kinds that read tokens train five more fits."""
        return mean_values([fit.held_out() if self.is_own else fit.predict(self.rows) for fit in self.fits])["p"]


def fit_probe(source: Learner, rows: TrainingRows, columns: IntArray | None) -> SafetyProbe:
    """Fit the safety probe to the labels of the source.

    Args:
        source: Rows that it is trained on, the window of each, kinds and seed.
        rows: Rows that delegation is learnt on.
        columns: Columns of the activations that it reads, ascending; None: all.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    width = source.rows.pooled.values.shape[1]
    targets = {"p": label_target(source.rows.labels)}
    if columns is None or columns.size == width:
        fits: Sequence[Fit] = source.fit(targets)
    else:
        narrow = replace(source, rows=source.rows.columns(columns))
        fits = [_Narrowed(fit, columns, width) for fit in narrow.fit(targets)]
    return SafetyProbe(fits, rows, is_own=source.rows is rows)


@dataclass(frozen=True, slots=True)
class _Narrowed:
    """A fit to some columns, seen as a fit to all of them."""

    fit: Fit
    keep: IntArray
    width: int

    def parts(self) -> list[Part]:
        return [part.widened(self.keep, self.width) for part in self.fit.parts()]

    def held_out(self) -> dict[str, FloatArray]:
        return self.fit.held_out()

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        return self.fit.predict(rows.columns(self.keep))

    def record(self) -> dict[str, Any]:
        return self.fit.record()
