"""Platt scaling and merge of p and e: a few parameters, learnt on out-of-sample scores of the training rows.

The training rows are disjoint from the certificate's rows, and the delegated inputs do not depend on the merge. So the
certified rate is the same for every merge.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from calibrate.train.platt import fit_scaling
from calibrate.train.quality import cascade_quality
from ctd_guardrail._typing import FloatArray, IndexArray
from ctd_guardrail.probes.merge import Merge, log_odds

__all__ = [
    "MERGES",
    "MergeKind",
    "Scale",
    "compare_merges",
    "delegated_half",
    "fit_expert_scale",
    "fit_merge",
    "fit_probe_scale",
]

MergeKind = Literal["replace", "average", "stacking"]
Scale = tuple[float, float]

MERGES: Final[tuple[MergeKind, ...]] = ("replace", "average", "stacking")


def fit_probe_scale(labels: FloatArray, logit: FloatArray) -> Scale | None:
    """Return slope and offset of Platt scaling of p; None if a larger p does not mean more unsafe rows.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n].
        logit: Out-of-sample logit of p, shape [n].
    """
    scaling = fit_scaling(labels, logit)
    return (scaling.slopes[0], scaling.bias) if scaling.slopes[0] > 0.0 else None


def fit_expert_scale(labels: FloatArray, expert: FloatArray) -> Scale | None:
    """Return slope and offset of Platt scaling of the expert's P(unsafe); None as in :func:`fit_probe_scale`."""
    return fit_probe_scale(labels, log_odds(expert))


def fit_merge(
    kind: MergeKind, labels: FloatArray, p: FloatArray, expert: FloatArray, expert_scale: Scale | None
) -> Merge:
    """Fit the merge of p and e to one score.

    Args:
        kind: ``average``: the weight of e with the smallest Brier score. ``stacking``: logistic regression on both
            logits. ``replace`` has nothing to learn.
        labels: 1 = unsafe, 0 = safe, shape [n].
        p: Out-of-sample score of the safety probe, shape [n].
        expert: The expert's P(unsafe), shape [n].
        expert_scale: Platt scaling that is applied to the expert's score first.
    """
    replacing = Merge(expert_scale=expert_scale)
    scaled = replacing(p, expert)
    match kind:
        case "replace":
            return replacing
        case "average":
            gap = scaled - p
            weight = float(gap @ (labels - p)) / max(float(gap @ gap), 1e-12)
            return Merge(kind=kind, weight=min(1.0, max(0.0, weight)), expert_scale=expert_scale)
        case "stacking":
            scaling = fit_scaling(labels, log_odds(p), log_odds(scaled))
            probe, expert_slope = scaling.slopes
            return Merge(kind=kind, intercept=scaling.bias, probe=probe, expert=expert_slope, expert_scale=expert_scale)


def delegated_half(d: FloatArray) -> IndexArray:
    """Return the half of the rows with the largest d. The merge is learnt on them."""
    return np.argsort(-d, kind="stable")[: (d.size + 1) // 2]


def compare_merges(
    labels: FloatArray, p: FloatArray, d: FloatArray, expert: FloatArray, expert_scale: Scale | None
) -> list[dict[str, Any]]:
    """Return the Brier score and the AUROC of the cascade for each merge, on the training rows, as JSON."""
    found, sent = [], delegated_half(d)
    for kind in MERGES:
        merge = fit_merge(kind, labels[sent], p[sent], expert[sent], expert_scale)
        quality = cascade_quality(labels, p, d, merge(p, expert))
        found.append({"kind": kind, "brier": quality["brier"], "auroc": quality["auroc"]})
    return found
