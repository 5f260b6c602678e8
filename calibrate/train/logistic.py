"""Logistic regression on standardised activations: the safety probe, and eta of the delegation value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from calibrate.train.crossfit import FOLDS, assign_folds
from calibrate.train.standardise import Standardiser

__all__ = ["LogisticHead", "fit_logistic"]

# From nearly constant to nearly unpenalised, for a few hundred to a few thousand standardised features.
_STRENGTHS: Final = tuple(float(strength) for strength in np.logspace(-5, 1, 7))
_ITERATIONS: Final = 2000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogisticHead:
    """logit P(unsafe) = weight . x + bias.

    Attributes:
        weight: On raw features, shape [d].
        bias: Intercept.
        out_of_fold: Logit of each training row from a fit that saw neither the row nor its cluster, shape [n].
        record: How C was chosen, as JSON.
    """

    weight: FloatArray
    bias: float
    out_of_fold: FloatArray
    record: dict[str, Any]

    def logit(self, features: FloatArray) -> FloatArray:
        """Return the logits of other rows, shape [m], from their raw features, shape [m, d]."""
        logits: FloatArray = features @ self.weight + self.bias
        return logits


def fit_logistic(features: FloatArray, labels: FloatArray, clusters: IntArray, *, seed: int) -> LogisticHead:
    """Fit with the C whose out-of-fold log loss is smallest.

    Args:
        features: Raw pooled activations, shape [n, d].
        labels: 1 = unsafe, 0 = safe, shape [n].
        clusters: Rows of one number stay in one fold, shape [n].
        seed: Of the folds.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    folds = assign_folds(labels, clusters, seed=seed)
    standardise = Standardiser.fit(features)
    standardised = standardise(features)
    models = [LogisticRegression(warm_start=True, max_iter=_ITERATIONS) for _ in range(FOLDS)]
    alternatives: list[dict[str, float]] = []
    best, chosen, out_of_fold = np.inf, _STRENGTHS[0], np.zeros_like(labels)
    for strength in _STRENGTHS:
        logits = np.empty_like(labels)
        for fold, model in enumerate(models):
            outside = folds != fold
            model.set_params(C=strength).fit(standardised[outside], labels[outside])
            logits[~outside] = model.decision_function(standardised[~outside])
        loss = float(log_loss(labels, expit(logits)))
        alternatives.append({"C": strength, "log_loss": loss, "auroc": float(roc_auc_score(labels, logits))})
        if loss > best:
            # Along the path the loss falls and then rises, and the weakest penalties take longest to fit.
            break
        best, chosen, out_of_fold = loss, strength, logits
    model = LogisticRegression(C=chosen, max_iter=_ITERATIONS).fit(standardised, labels)
    weight, bias = standardise.fold(model.coef_[0], float(model.intercept_[0]))
    record = {
        "rows": int(labels.size),
        "unsafe": int(labels.sum()),
        "folds": FOLDS,
        "C": chosen,
        "alternatives": alternatives,
    }
    return LogisticHead(weight, bias, out_of_fold, record)
