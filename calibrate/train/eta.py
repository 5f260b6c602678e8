"""eta = P(y=1|x) on the rows that delegation is learnt on, where the safety probe was fitted to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.train.learner import Fit, Learner, mean_values
from calibrate.train.merging import fit_probe_scale
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import label_target

__all__ = ["fit_eta"]

FloatArray = NDArray[np.float64]


def fit_eta(learner: Learner, source: Learner) -> Sequence[Fit]:
    """Fit eta to the learner's rows, together with the safety probe's where that lowers the log loss on the former.

    Rows of the same traffic help, rows of another source may not. eta reads no extra features: p's logit, fitted to
    the labels of other rows, would give theirs away. A penalty leaves it less sure than its held-out ranking deserves,
    and rows of another source shift it: Platt scaling on held-out logits makes up for both.
    """
    rows, others = learner.rows, source.rows
    alone = learner.fit({"eta": label_target(rows.labels)}, learner.no_extras())
    if learner.kinds != ("mean",):
        # Held-out values of other kinds take five more fits each.
        return alone
    joined = replace(
        learner, rows=rows.beside(others), chosen=np.append(learner.chosen, source.chosen + len(rows.pooled.lengths))
    )
    together: list[Fit] = [
        _Beside(fit, len(rows), len(others))
        for fit in joined.fit({"eta": label_target(joined.rows.labels)}, joined.no_extras())
    ]
    best = min((alone, together), key=lambda fits: _log_loss(rows.labels, fits))
    return [_scaled(fit, rows.labels) for fit in best]


def _scaled(fit: Fit, labels: FloatArray) -> Fit:
    scale = fit_probe_scale(labels, fit.held_out()["eta"])
    return fit if scale is None else _Scaled(fit, *scale)


def _log_loss(labels: FloatArray, fits: Sequence[Fit]) -> float:
    logit = mean_values([fit.held_out() for fit in fits])["eta"]
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
    """A fit whose logit x is ``slope x + offset``."""

    fit: Fit
    slope: float
    offset: float

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
        return {name: self.slope * logit + self.offset for name, logit in values.items()}
