"""Both probes from one set of labelled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr

from calibrate.train.crossfit import check_classes
from calibrate.train.delegation import fit_expert_heads
from calibrate.train.logistic import fit_logistic
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.delegation import delegation_value
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import ProbeSpec

__all__ = ["SafetyRows", "TrainedProbes", "train_probes"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SafetyRows:
    """Rows of another source, on which the safety probe is trained instead.

    Attributes:
        pooled: Mean-pooled activations, shape [n, width].
        labels: 1 = unsafe, 0 = safe, shape [n].
        clusters: Rows of one number are dependent, shape [n].
    """

    pooled: NDArray[np.float32]
    labels: FloatArray
    clusters: IntArray


@dataclass(frozen=True, slots=True)
class TrainedProbes:
    """What training produces.

    Attributes:
        probes: As the rail runs them.
        record: Seed, rows, alternatives and their cross-validated scores, as JSON.
    """

    probes: Probes
    record: dict[str, Any]


def train_probes(
    pooled: NDArray[np.float32],
    labels: FloatArray,
    expert: FloatArray,
    clusters: IntArray,
    *,
    seed: int,
    safety: SafetyRows | None = None,
) -> TrainedProbes:
    """Train the safety probe and the delegation value.

    Without ``safety`` the same rows serve both: then eta, P(y=1|x) on these rows, is the safety probe.

    Args:
        pooled: Mean-pooled activations, shape [n, width].
        labels: 1 = unsafe, 0 = safe, shape [n].
        expert: The expert's P(unsafe) in [0, 1] of rows that it was not trained on, shape [n].
        clusters: Rows of one number are near-duplicates or turns of one conversation, shape [n].
        seed: Of the folds; the same rows and seed give the same probes.
        safety: Rows for the safety probe, where it is to come from another source.

    Raises:
        DataError: Columns differ in length, a value is not finite or out of range, or a class has too few rows.
    """
    features = _check(pooled, labels, clusters, purpose="the delegation value")
    if expert.shape != labels.shape or not ((expert >= 0.0) & (expert <= 1.0)).all():
        raise DataError(f"expert scores are not {labels.size} numbers in [0, 1]", hint="They are P(unsafe), one a row")
    eta = fit_logistic(features, labels, clusters, seed=seed)
    if safety is None:
        probe, logit = eta, eta.out_of_fold
    else:
        source = _check(safety.pooled, safety.labels, safety.clusters, purpose="the safety probe")
        probe = fit_logistic(source, safety.labels, safety.clusters, seed=seed)
        logit = probe.logit(features)
    e1, e0 = fit_expert_heads(features, labels, expert, clusters)
    heads = (probe, eta, e1, e0)
    probes = Probes(
        ProbeSpec(),
        {
            "0.weight": np.stack([head.weight for head in heads]).astype(np.float32),
            "bias": np.array([head.bias for head in heads], dtype=np.float32),
        },
    )
    record = {
        "seed": seed,
        "rows": int(labels.size),
        "refit": safety is None,
        "safety": probe.record,
        "delegation": {
            "kind": probes.spec.delegation,
            "eta": eta.record,
            "e1": e1.record,
            "e0": e0.record,
            "cross_fitted": _agreement(
                labels,
                expert,
                p=expit(logit),
                eta=expit(eta.out_of_fold),
                e1=e1.out_of_sample,
                e0=e0.out_of_sample,
            ),
        },
    }
    return TrainedProbes(probes, record)


def _agreement(labels: FloatArray, expert: FloatArray, **out_of_sample: FloatArray) -> dict[str, float]:
    """Return how well d predicts v on the training rows, every part of both from fits that have not seen the row.

    With in-sample scores p is nearer to the label than it will be in deployment: v comes out too small, and d too
    good.
    """
    value = (2.0 * labels - 1.0) * (expert - out_of_sample["p"])
    parts = (torch.from_numpy(out_of_sample[name]) for name in ("p", "eta", "e1", "e0"))
    predicted = delegation_value(*parts).numpy()
    return {
        "mean_value": float(value.mean()),
        "spearman": float(spearmanr(value, predicted).statistic),
        "r2": float(1.0 - np.square(value - predicted).mean() / value.var()),
    }


def _check(pooled: NDArray[np.float32], labels: FloatArray, clusters: IntArray, *, purpose: str) -> FloatArray:
    rows = labels.size
    if pooled.ndim != 2 or labels.ndim != 1 or not pooled.shape[0] == rows == clusters.size:  # noqa: PLR2004  # a matrix
        raise DataError(
            f"the rows for {purpose} are {rows} labels, {clusters.size} clusters and activations {pooled.shape}"
        )
    if not np.isin(labels, (0.0, 1.0)).all():
        raise DataError(f"a label of the rows for {purpose} is neither 0 nor 1")
    if not np.isfinite(pooled).all():
        raise DataError(
            f"the activations of the rows for {purpose} are not all finite",
            hint="Run the base model in float32 or bfloat16: float16 overflows in some models",
        )
    check_classes(labels, purpose=purpose)
    # Sums over thousands of rows and dimensions of very different size: float32 would lose the small ones.
    return pooled.astype(np.float64)
