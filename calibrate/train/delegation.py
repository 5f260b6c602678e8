"""What the delegation value has to learn of the expert: its score on unsafe and on safe rows.

v = (2y - 1)(e - p) (arXiv 2604.14251, section 3), and p is known wherever v is predicted. Besides eta = P(y=1|x), only
e1 = E[e | x, y=1] and e0 = E[e | x, y=0] are unknown; each is a ridge regression on the rows of its label.
:func:`ctd_guardrail.probes.delegation.delegation_value` puts the three together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.train.ridge import PENALTIES, Ridge, fit_ridge
from calibrate.train.standardise import Standardiser

__all__ = ["ExpertHead", "fit_expert_heads"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertHead:
    """The expert's score on rows of one label, before it is clipped to [0, 1].

    Attributes:
        weight: On raw activations, shape [d].
        bias: Intercept.
        out_of_sample: Prediction for every training row, of either label, from a fit without it, shape [n].
        record: How the penalty was chosen, as JSON.
    """

    weight: FloatArray
    bias: float
    out_of_sample: FloatArray
    record: dict[str, Any]


def fit_expert_heads(
    features: FloatArray, labels: FloatArray, expert: FloatArray, clusters: IntArray
) -> tuple[ExpertHead, ExpertHead]:
    """Fit e1 and e0.

    Args:
        features: Raw pooled activations, shape [n, d].
        labels: 1 = unsafe, 0 = safe, shape [n].
        expert: The expert's P(unsafe) of rows that it was not trained on, shape [n].
        clusters: Rows of one number are left out together when a penalty is chosen, shape [n].
    """
    standardise = Standardiser.fit(features)
    standardised = standardise(features)

    def fit(rows: NDArray[np.bool_]) -> ExpertHead:
        ridge = fit_ridge(standardised[rows], expert[rows], clusters[rows])
        prediction = standardised @ ridge.weight + ridge.bias
        prediction[rows] = ridge.left_out
        return ExpertHead(*standardise.fold(ridge.weight, ridge.bias), prediction, _record(ridge))

    return fit(labels == 1), fit(labels == 0)


def _record(ridge: Ridge) -> dict[str, Any]:
    return {
        "rows": int(ridge.left_out.size),
        "penalty": ridge.penalty,
        "alternatives": [
            {"penalty": penalty, "squared_error": error} for penalty, error in zip(PENALTIES, ridge.errors, strict=True)
        ],
    }
