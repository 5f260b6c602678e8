"""Heads that read some of the columns of the rows that others read in full.

The safety probe may do best on one layer while the delegation heads, which have more to learn, read several: one
forward pass gives them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.train.learner import Fit, Learner
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import Target

__all__ = ["fit_columns"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def fit_columns(learner: Learner, keep: IntArray, targets: Mapping[str, Target]) -> Sequence[Fit]:
    """Return one fit of each kind, without extra features, that reads only these columns of the learner's rows.

    Args:
        learner: Rows, the window of each, kinds and seed.
        keep: Columns, ascending.
        targets: What each head is to say.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    width = learner.rows.pooled.values.shape[1]
    if keep.size == width:
        return learner.fit(targets, learner.no_extras())
    narrow = replace(learner, rows=learner.rows.columns(keep))
    return [_Narrowed(fit, keep, width) for fit in narrow.fit(targets, narrow.no_extras())]


@dataclass(frozen=True, slots=True)
class _Narrowed:
    """A fit to some columns, as one of all of them."""

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
