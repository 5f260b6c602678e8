"""eta = P(y=1|x) on the rows that delegation is learnt on, where the safety probe was fitted to others.

d is linear in eta, so an error of eta costs its square, which is what a ridge regression of the labels minimises; a
logistic regression is graded by log loss, where a few surprising rows count most, but bends as probabilities do near 0
and 1. Which is better depends on how well x tells the labels apart, so linear heads are fitted both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from calibrate.train.learner import Fit, Learner
from calibrate.train.merging import Scale, fit_probe_scale
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import label_target, share_target

__all__ = ["fit_eta"]

FloatArray = NDArray[np.float64]


def fit_eta(learner: Learner, source: Learner) -> Sequence[Fit]:
    """Fit eta to the learner's rows: of four linear fits, the one with the lowest held-out log loss.

    Two are together with the safety probe's rows: those of the same traffic help, those of another source may not.
    eta reads no extra features: p's logit, fitted to the labels of other rows, would give theirs away. Held-out values
    are scaled first, on the learner's own rows: that gives the ridge a logit, and makes up for what a penalty does to
    the spread and rows of another source to the level.
    """
    rows, others = learner.rows, source.rows
    if learner.kinds != ("mean",):
        # Held-out values of other kinds take five more fits each.
        return learner.fit({"eta": label_target(rows.labels)}, learner.no_extras())
    joined = replace(
        learner, rows=rows.beside(others), chosen=np.append(learner.chosen, source.chosen + len(rows.pooled.lengths))
    )
    candidates: list[Fit] = []
    for target_of in (label_target, share_target):
        (alone,), (together,) = (
            each.fit({"eta": target_of(each.rows.labels)}, each.no_extras()) for each in (learner, joined)
        )
        candidates += [alone, _Beside(together, len(rows), len(others))]
    scaled = [_Scaled.of(fit, rows.labels) for fit in candidates]
    return [min(scaled, key=lambda fit: _log_loss(rows.labels, fit.held_out()["eta"]))]


def _log_loss(labels: FloatArray, logit: FloatArray) -> float:
    return float(np.logaddexp(0.0, np.where(labels == 1, -logit, logit)).mean())


@dataclass(frozen=True, slots=True)
class _Beside:
    """A fit to our rows and to others after them, of which only ours are held out."""

    fit: Fit
    ours: int
    others: int

    def parts(self) -> list[Part]:
        return self.fit.parts()

    def held_out(self) -> dict[str, FloatArray]:
        return {name: values[: self.ours] for name, values in self.fit.held_out().items()}

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        return self.fit.predict(rows)

    def record(self) -> dict[str, Any]:
        return {name: {**record, "rows_of_safety_probe": self.others} for name, record in self.fit.record().items()}


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A fit whose logit is ``slope x + offset``."""

    fit: Fit
    slope: float
    offset: float

    @classmethod
    def of(cls, fit: Fit, labels: FloatArray) -> _Scaled:
        # Where nothing was learnt, eta is the share of unsafe rows.
        nothing: Scale = (0.0, float(logit(labels.mean())))
        return cls(fit, *(fit_probe_scale(labels, fit.held_out()["eta"]) or nothing))

    def parts(self) -> list[Part]:
        return [part.rescaled(self.slope, self.offset, ("eta",)) for part in self.fit.parts()]

    def held_out(self) -> dict[str, FloatArray]:
        return self._scale(self.fit.held_out())

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        return self._scale(self.fit.predict(rows))

    def record(self) -> dict[str, Any]:
        scale = {"slope": self.slope, "offset": self.offset}
        return {name: {**record, "scale": scale} for name, record in self.fit.record().items()}

    def _scale(self, values: dict[str, FloatArray]) -> dict[str, FloatArray]:
        return {name: self.slope * value + self.offset for name, value in values.items()}
