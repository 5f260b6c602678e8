"""Logistic regression on standardised activations, for the safety probe and for eta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from calibrate.train.crossfit import FOLDS, assign_folds
from calibrate.train.standardise import Standardiser
from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["LogisticHead", "fit_logistic"]

# From nearly constant to nearly unpenalised, for a few hundred to a few thousand standardised features.
_STRENGTHS: Final = tuple(float(strength) for strength in np.logspace(-5, 1, 7))
_ITERATIONS: Final = 2000


@dataclass(frozen=True, slots=True)
class LogisticHead:
    """logit P(unsafe) = weight . x + bias.

    Attributes:
        weight: Weights on raw features, shape [d].
        bias: Intercept.
        out_of_fold: Logit of each training row from a fit that saw neither the row nor its cluster, shape [n].
        record: Choice of C, as JSON.
        folds: Fold of each training row, shape [n].
        fold_weights: Weights on raw features of the fit without each fold, shape [FOLDS, d].
        fold_biases: Their intercepts, shape [FOLDS].
    """

    weight: FloatArray
    bias: float
    out_of_fold: FloatArray
    record: dict[str, Any]
    folds: IntArray
    fold_weights: FloatArray
    fold_biases: FloatArray

    def logit(self, features: FloatArray) -> FloatArray:
        """Return the logits of other rows, shape [m], from their raw features, shape [m, d]."""
        logits: FloatArray = features @ self.weight + self.bias
        return logits

    def held_out_logit(self, features: FloatArray, owner: IntArray) -> FloatArray:
        """Return out-of-fold logits of further vectors of the training rows, such as their other windows.

        Args:
            features: Raw features, shape [m, d].
            owner: Training row that each belongs to, shape [m].
        """
        fold = self.folds[owner]
        logits: FloatArray = np.einsum("ij,ij->i", features, self.fold_weights[fold]) + self.fold_biases[fold]
        return logits


def fit_logistic(
    features: FloatArray, labels: FloatArray, clusters: IntArray, *, seed: int, weights: FloatArray | None = None
) -> LogisticHead:
    """Fit with the C that has the smallest out-of-fold log loss.

    Args:
        features: Raw pooled activations, shape [n, d].
        labels: 1 = unsafe, 0 = safe, shape [n].
        clusters: Rows of one number stay in one fold, shape [n].
        seed: Seed of the folds.
        weights: Weight of each row, shape [n]; None: equal weights.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    folds = assign_folds(labels, clusters, seed=seed)
    weights = np.ones_like(labels) if weights is None else weights
    standardise = Standardiser.fit(features)
    standardised = standardise(features)
    models = [LogisticRegression(warm_start=True, max_iter=_ITERATIONS) for _ in range(FOLDS)]
    alternatives: list[dict[str, float]] = []
    best, chosen, out_of_fold = np.inf, _STRENGTHS[0], np.zeros_like(labels)
    fold_heads: list[tuple[FloatArray, float]] = []
    for strength in _STRENGTHS:
        logits = np.empty_like(labels)
        for fold, model in enumerate(models):
            outside = folds != fold
            model.set_params(C=strength).fit(standardised[outside], labels[outside], weights[outside])
            logits[~outside] = model.decision_function(standardised[~outside])
        loss = float(log_loss(labels, expit(logits), sample_weight=weights))
        alternatives.append({"C": strength, "log_loss": loss, "auroc": float(roc_auc_score(labels, logits))})
        if loss > best:
            # The loss falls and then rises along the path, and the weakest penalties take longest to fit.
            break
        best, chosen, out_of_fold = loss, strength, logits
        fold_heads = [standardise.fold(model.coef_[0], float(model.intercept_[0])) for model in models]
    model = LogisticRegression(C=chosen, max_iter=_ITERATIONS).fit(standardised, labels, weights)
    weight, bias = standardise.fold(model.coef_[0], float(model.intercept_[0]))
    record = {
        "rows": int(labels.size),
        "unsafe": int(labels.sum()),
        "folds": FOLDS,
        "C": chosen,
        "alternatives": alternatives,
    }
    return LogisticHead(
        weight,
        bias,
        out_of_fold,
        record,
        folds,
        np.stack([fold_weight for fold_weight, _ in fold_heads]),
        np.array([fold_bias for _, fold_bias in fold_heads]),
    )
