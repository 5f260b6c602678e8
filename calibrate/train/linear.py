"""Linear heads on mean activations: logistic regression, and ridge regression in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from calibrate.train.logistic import fit_logistic
from calibrate.train.parts import Part
from calibrate.train.ridge import PENALTIES, Ridge, fit_ridge
from calibrate.train.rows import TrainingRows, over_rows
from calibrate.train.standardise import Standardiser
from calibrate.train.targets import Target
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.probes.spec import Component, Output

__all__ = ["LinearFit", "LinearHead", "fit_linear"]


@dataclass(frozen=True, slots=True)
class LinearHead:
    """weight . h + bias, for the mean activation h of a window.

    Attributes:
        weight: Weights on raw activations, shape [width].
        bias: Intercept.
        held_out: Value of each training row from fits that saw neither the row nor its cluster, shape [rows].
        record: Choice of the regularisation, as JSON.
    """

    weight: FloatArray
    bias: float
    held_out: FloatArray
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Heads of one fit, by name."""

    heads: Mapping[str, LinearHead]

    def held_out(self) -> dict[str, FloatArray]:
        """Return the value of each head for every training row, from fits that have not seen it."""
        return {name: head.held_out for name, head in self.heads.items()}

    def record(self) -> dict[str, Any]:
        """Return the regularisation of each head, as JSON."""
        return {name: head.record for name, head in self.heads.items()}

    def parts(self) -> list[Part]:
        """Return all heads as one component."""
        heads = self.heads.values()
        return [
            Part(
                Component(outputs=cast("tuple[Output, ...]", tuple(self.heads))),
                {"weight": np.stack([head.weight for head in heads])},
                np.array([head.bias for head in heads]),
            )
        ]

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        """Return the value of each head for other rows: the largest over the windows of a row."""
        windows = rows.pooled.values.astype(np.float64)
        return {
            name: over_rows(windows @ head.weight + head.bias, rows.pooled.windows) for name, head in self.heads.items()
        }


def fit_linear(rows: TrainingRows, targets: Mapping[str, Target], *, chosen: IntArray, seed: int) -> LinearFit:
    """Fit one head for each target.

    Args:
        rows: Activations and clusters.
        targets: Target of each head.
        chosen: The window of each row that the heads learn from, shape [rows].
        seed: Seed of the folds.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    # The sums run over thousands of rows, and dimensions differ widely in scale: float32 would lose the small ones.
    features = rows.pooled.values[chosen].astype(np.float64)
    return LinearFit(
        {
            name: _logistic(rows, features, target, seed=seed)
            if target.loss == "logistic"
            else _ridge(rows, features, target)
            for name, target in targets.items()
        }
    )


def _logistic(rows: TrainingRows, features: FloatArray, target: Target, *, seed: int) -> LinearHead:
    fitted = fit_logistic(features, target.values, rows.clusters, seed=seed, weights=target.weights)
    held_out = fitted.out_of_fold
    if (rows.pooled.windows > 1).any():
        # A fit that has not seen the row may give another of its windows the largest score.
        windows = rows.pooled.values.astype(np.float64)
        held_out = over_rows(fitted.held_out_logit(windows, rows.pooled.row_of_window), rows.pooled.windows)
    return LinearHead(fitted.weight, fitted.bias, held_out, fitted.record)


def _ridge(rows: TrainingRows, features: FloatArray, target: Target) -> LinearHead:
    part = target.rows
    standardise = Standardiser.fit(features)
    standardised = standardise(features)
    fitted = fit_ridge(standardised[part], target.values[part], rows.clusters[part])
    held_out = standardised @ fitted.weight + fitted.bias
    held_out[part] = fitted.left_out
    weight, bias = standardise.fold(fitted.weight, fitted.bias)
    return LinearHead(weight, bias, held_out, _record(fitted))


def _record(ridge: Ridge) -> dict[str, Any]:
    return {
        "rows": int(ridge.left_out.size),
        "penalty": ridge.penalty,
        "alternatives": [
            {"penalty": penalty, "squared_error": error} for penalty, error in zip(PENALTIES, ridge.errors, strict=True)
        ],
    }
