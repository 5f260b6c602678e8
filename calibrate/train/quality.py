"""Quality of a pair of probes and a merge: the Brier score of the cascade, averaged over budgets."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ctd_guardrail._typing import FloatArray

__all__ = ["BUDGETS", "cascade_quality"]

BUDGETS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the rows that go to the expert."""


def cascade_quality(labels: FloatArray, p: FloatArray, d: FloatArray, merged: FloatArray) -> dict[str, float]:
    """Return the quality of the cascade that delegates the rows with the largest d.

    The Brier score, averaged over :data:`BUDGETS`, decides between candidates. It is proper: it rewards a p that is
    right as a probability. AUROC rewards the ranking alone.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n].
        p: Out-of-sample score of the probe, shape [n].
        d: Out-of-sample delegation value, shape [n].
        merged: The cascade's score of each row if it is delegated, shape [n].

    Returns:
        ``brier`` and ``auroc`` of the cascade, ``probe_auroc``, and ``spearman`` of d and v. AUROC is 1/2 if there is
        one label only.
    """
    order = np.argsort(-d, kind="stable")
    briers, aurocs = [], []
    for budget in BUDGETS:
        score = p.copy()
        delegated = order[: int(budget * labels.size)]
        score[delegated] = merged[delegated]
        briers.append(float(np.square(labels - score).mean()))
        aurocs.append(_auroc(labels, score))
    value = (2.0 * labels - 1.0) * (merged - p)
    return {
        "brier": float(np.mean(briers)),
        "auroc": float(np.mean(aurocs)),
        "probe_auroc": _auroc(labels, p),
        "spearman": float(spearmanr(value, d).statistic) if value.std() > 0.0 < d.std() else 0.0,
    }


def _auroc(labels: FloatArray, score: FloatArray) -> float:
    return float(roc_auc_score(labels, score)) if 0.0 < labels.mean() < 1.0 else 0.5
