"""Calibration rows, and the settings that the cascade can run at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctd_guardrail._typing import BoolArray, FloatArray, IndexArray
from ctd_guardrail.errors import DataError

__all__ = ["Rows", "Setting"]


@dataclass(frozen=True, slots=True)
class Setting:
    """Parameters of the cascade's decisions.

    Attributes:
        threshold: lambda: delegate iff d > lambda, strictly.
        tau: Decision threshold on the merged score: a score of at least tau blocks.
        band: Half-width of the abstain band. An input whose score is closer to tau gets no verdict. 0: no band.
    """

    threshold: float
    tau: float = 0.5
    band: float = 0.0


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows that no probe was trained on, one from each cluster of dependent rows.

    Attributes:
        d: Delegation values, shape [n].
        probe: P(unsafe) of a row that is not delegated, shape [n].
        expert: P(unsafe) of a row that is delegated: the expert's score, or its merge with the probe's, shape [n]. NaN:
            the expert refused the row. It counts in the budget and in the risks of the probe's own verdicts.
        label: 1 = unsafe, shape [n]; NaN: no label, if ``label_share`` is below 1.
        label_share: Probability with which a coin, independent of the row, gave it a label. 1: all have one.

    Raises:
        DataError: Columns differ in length, a score is not in [0, 1], a delegation value is not finite, or a label is
            neither 0 nor 1; the row is named.
    """

    d: FloatArray
    probe: FloatArray
    expert: FloatArray
    label: FloatArray
    label_share: float = 1.0

    def __post_init__(self) -> None:
        """Check every column."""
        checks = (
            ("delegation value", self.d, np.isfinite(self.d)),
            ("probe score", self.probe, (self.probe >= 0.0) & (self.probe <= 1.0)),
            ("expert score", self.expert, ~self.is_answered | ((self.expert >= 0.0) & (self.expert <= 1.0))),
            ("label", self.label, self._may_lack_label | (self.label == 0.0) | (self.label == 1.0)),
        )
        for name, column, valid in checks:
            if column.shape != self.d.shape or column.ndim != 1:
                raise DataError(f"there are {column.shape} {name}s for {self.d.shape} delegation values")
            bad = np.flatnonzero(~valid)
            if bad.size:
                raise DataError(f"{name} is {column[bad[0]]}", row=int(bad[0]) + 1)

    @property
    def is_answered(self) -> BoolArray:
        """A mask of the rows with a score of the expert, shape [n]."""
        return ~np.isnan(self.expert)

    @property
    def is_labelled(self) -> BoolArray:
        """A mask of the rows with a label, shape [n]."""
        return ~np.isnan(self.label)

    @property
    def _may_lack_label(self) -> BoolArray:
        return ~self.is_labelled if self.label_share < 1.0 else np.zeros(self.label.shape, dtype=np.bool_)

    def __len__(self) -> int:
        """Return n."""
        return int(self.d.size)

    def take(self, index: IndexArray) -> Rows:
        """Return the rows at the given indices."""
        return Rows(self.d[index], self.probe[index], self.expert[index], self.label[index], self.label_share)

    def delegated(self, setting: Setting) -> BoolArray:
        """Return a mask of the rows that go to the expert, shape [n]."""
        return self.d > setting.threshold

    def score(self, setting: Setting) -> FloatArray:
        """Return the score that the verdict on each row is made of, shape [n]; NaN if the expert refused it."""
        return np.where(self.delegated(setting), self.expert, self.probe)
