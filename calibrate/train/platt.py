"""Logistic regression on one or two logits: Platt scaling and stacking.

Labels are smoothed to (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), as in Platt (1999). So the slope stays finite if a score
separates the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ctd_guardrail._typing import FloatArray

__all__ = ["Scaling", "fit_scaling"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """logit P(unsafe) = slopes . columns + bias.

    Attributes:
        slopes: Shape [k].
        bias: Intercept.
    """

    slopes: tuple[float, ...]
    bias: float

    def __call__(self, *columns: FloatArray) -> FloatArray:
        """Return the logits, from k columns of shape [n]."""
        return (
            sum((slope * column for slope, column in zip(self.slopes, columns, strict=True)), np.zeros(1)) + self.bias
        )


def fit_scaling(labels: FloatArray, *columns: FloatArray) -> Scaling:
    """Fit by maximum likelihood to the smoothed labels.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n]; both occur.
        columns: Finite logits, each of shape [n].
    """
    unsafe, rows = labels.sum(), labels.size
    target = np.where(labels == 1, (unsafe + 1.0) / (unsafe + 2.0), 1.0 / (rows - unsafe + 2.0))
    design = np.column_stack([*columns, np.ones(rows)])

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = design @ weights
        gradient: FloatArray = design.T @ (expit(logits) - target) / rows
        return float(np.mean(np.logaddexp(0.0, logits) - target * logits)), gradient

    *slopes, bias = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS").x.tolist()
    return Scaling(tuple(slopes), bias)
