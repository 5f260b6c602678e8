"""eta = P(y=1|x) on the rows that delegation is learnt on, if the safety probe was trained on other rows.

d is linear in eta, so an error of eta costs its square. A ridge regression of the labels minimises that square. A
logistic regression minimises log loss, in which a few surprising rows count most, but it bends near 0 and 1 as
probabilities do. Which of them is better depends on how well x separates the labels. So linear heads are fitted in both
ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logit

from calibrate.train.learner import Fit, Learner
from calibrate.train.merging import Scale, fit_probe_scale
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import label_target, share_target
from ctd_guardrail._typing import FloatArray

__all__ = ["fit_eta"]


def fit_eta(learner: Learner, source: Learner) -> Sequence[Fit]:
    """Fit eta to the learner's rows: of four linear fits, the one with the lowest held-out log loss.

    Two of them also use the rows of the safety probe. Rows of the same traffic help, rows of another source may not.
    Held-out values are Platt-scaled on the learner's own rows. That gives the ridge a logit, and corrects the spread
    (which a penalty narrows) and the level (which rows of another source shift).

    Args:
        learner: Rows that delegation is learnt on.
        source: Rows that the safety probe was trained on.
    """
    rows, others = learner.rows, source.rows
    if learner.kinds != ("mean",):
        # Held-out values of the other kinds would take five more fits each.
        return learner.fit({"eta": label_target(rows.labels)})
    joined = replace(
        learner, rows=rows.beside(others), chosen=np.append(learner.chosen, source.chosen + len(rows.pooled.lengths))
    )
    candidates: list[Fit] = []
    for target_of in (label_target, share_target):
        (alone,), (together,) = (each.fit({"eta": target_of(each.rows.labels)}) for each in (learner, joined))
        candidates += [alone, _Beside(together, len(rows), len(others))]
    scaled = [_Scaled.of(fit, rows.labels) for fit in candidates]
    return [min(scaled, key=lambda fit: _log_loss(rows.labels, fit.held_out()["eta"]))]


def _log_loss(labels: FloatArray, logit: FloatArray) -> float:
    return float(np.logaddexp(0.0, np.where(labels == 1, -logit, logit)).mean())


@dataclass(frozen=True, slots=True)
class _Beside:
    """A fit to the learner's rows and to other rows after them, with held-out values of the learner's rows alone."""

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
        # If nothing was learnt, eta is the share of unsafe rows.
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
