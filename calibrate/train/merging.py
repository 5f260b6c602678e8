"""Platt scaling of p and e, and how the cascade merges them: a few parameters, learnt on out-of-sample scores.

The rows are those that train the probes. They are disjoint from the certificate's, and which inputs are delegated
does not depend on the merge: the certified rate is the same whatever is learnt here.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from calibrate.train.platt import fit_scaling
from calibrate.train.quality import cascade_quality
from ctd_guardrail.probes.merge import Merge, log_odds

__all__ = ["MERGES", "Scale", "compare_merges", "delegated_half", "fit_expert_scale", "fit_merge", "fit_probe_scale"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
MergeKind = Literal["replace", "average", "stacking"]
Scale = tuple[float, float]

MERGES: Final[tuple[MergeKind, ...]] = ("replace", "average", "stacking")


def fit_probe_scale(labels: FloatArray, logit: FloatArray) -> Scale | None:
    """Return slope and offset of Platt scaling of p; None where a larger p does not mean more unsafe rows.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [n].
        logit: Of p, out of sample, shape [n].
    """
    scaling = fit_scaling(labels, logit)
    return (scaling.slopes[0], scaling.bias) if scaling.slopes[0] > 0.0 else None


def fit_expert_scale(labels: FloatArray, expert: FloatArray) -> Scale | None:
    """Return slope and offset of Platt scaling of the expert's P(unsafe), shape [n]; None likewise."""
    return fit_probe_scale(labels, log_odds(expert))


def fit_merge(
    kind: MergeKind, labels: FloatArray, p: FloatArray, expert: FloatArray, expert_scale: Scale | None
) -> Merge:
    """Learn how p and e become one score.

    Args:
        kind: ``average``: the weight of e that gives the smallest Brier score. ``stacking``: logistic regression on
            both logits. ``replace`` has nothing to learn.
        labels: 1 = unsafe, 0 = safe, shape [n].
        p: Safety probe out of sample, shape [n].
        expert: The expert's P(unsafe), shape [n].
        expert_scale: Platt scaling of it that goes before.
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


def delegated_half(d: FloatArray) -> IntArray:
    """Return the rows that some budget up to 1/2 delegates: where a merge has to be good."""
    return np.argsort(-d, kind="stable")[: (d.size + 1) // 2]


def compare_merges(
    labels: FloatArray, p: FloatArray, d: FloatArray, expert: FloatArray, expert_scale: Scale | None
) -> list[dict[str, Any]]:
    """Return what each way to merge is worth on the rows that it was learnt on, for one d; as JSON."""
    found, sent = [], delegated_half(d)
    for kind in MERGES:
        merge = fit_merge(kind, labels[sent], p[sent], expert[sent], expert_scale)
        quality = cascade_quality(labels, p, d, merge(p, expert))
        found.append({"kind": kind, "brier": quality["brier"], "auroc": quality["auroc"]})
    return found
