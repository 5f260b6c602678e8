from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import certify, sort_scores
from ctd_guardrail.policy.selection import Costs, Criterion, auroc_error, best_threshold


def _columns(n: int, seed: int, levels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "d": rng.integers(0, levels, n) / levels,
        "probe": rng.integers(0, 11, n) / 10,
        "expert": rng.integers(0, 11, n) / 10,
        "label": np.append([0.0, 1.0], rng.integers(0, 2, n - 2).astype(np.float64)),
    }


def _risk(criterion: Criterion, columns: dict[str, np.ndarray], threshold: float, costs: Costs) -> float:
    """The definition, without sorting, sums or shared code."""
    delegated = columns["d"] > threshold
    score = np.where(delegated, columns["expert"], columns["probe"])
    label = columns["label"]
    if criterion is Criterion.AUROC:
        return 1 - float(roc_auc_score(label, score))
    if criterion is Criterion.BRIER:
        return float(((score - label) ** 2).mean())
    wrong = (score >= 0.5) != (label == 1)
    if criterion is Criterion.ACCURACY:
        return float(wrong.mean())
    weight = np.where(label == 1, costs.missed, costs.false_alarm)
    return float((wrong * weight + delegated * costs.call).mean())


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(40, 120),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([3, 20, 10**6]),
    criterion=st.sampled_from([Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER, Criterion.COST]),
)
def test_no_certified_threshold_does_better(n: int, seed: int, levels: int, criterion: Criterion) -> None:
    columns = _columns(n, seed, levels)
    costs = Costs(missed=3.0, false_alarm=0.5, call=0.1)
    certificate = certify(sort_scores(columns["d"]), 0.3, 0.1)
    choice = best_threshold(certificate, criterion, **columns, costs=costs)
    assert choice.threshold >= certificate.threshold
    assert choice.exceedances == (columns["d"] > choice.threshold).sum() <= certificate.k
    assert choice.risk == pytest.approx(_risk(criterion, columns, choice.threshold, costs), abs=1e-12)
    rivals = [t for t in [*columns["d"], certificate.threshold] if t >= certificate.threshold]
    best = min(_risk(criterion, columns, t, costs) for t in rivals)
    assert choice.risk == pytest.approx(best, abs=1e-12)
    # Among equals the one that asks the expert least.
    assert not any(t > choice.threshold and _risk(criterion, columns, t, costs) <= best + 1e-13 for t in rivals)


def test_an_expert_that_only_does_harm_is_not_asked() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(2000) < 0.3).astype(np.float64)
    probe = np.where(label == 1, 0.9, 0.1)
    certificate = certify(np.sort(d := rng.random(2000)), 0.3, 0.1)
    for criterion in (Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER, Criterion.COST):
        choice = best_threshold(certificate, criterion, d=d, probe=probe, expert=1 - probe, label=label)
        assert choice.exceedances == 0
    spent = best_threshold(certificate, Criterion.BUDGET, d=d, probe=probe, expert=1 - probe, label=label)
    assert spent.threshold == certificate.threshold


def test_a_certificate_from_other_scores_bounds_the_choice() -> None:
    columns = _columns(200, 1, 10**6)
    traffic = certify(np.sort(np.random.default_rng(2).random(5000)), 0.1, 0.05)
    assert best_threshold(traffic, Criterion.BRIER, **columns).threshold >= traffic.threshold


def test_an_infeasible_budget_leaves_nothing_to_choose() -> None:
    columns = _columns(10, 0, 10**6)
    choice = best_threshold(certify(np.sort(columns["d"]), 0.01, 0.05), Criterion.ACCURACY, **columns)
    assert (choice.threshold, choice.exceedances) == (math.inf, 0)


def test_auroc_without_both_labels_is_refused() -> None:
    with pytest.raises(DataError, match="AUROC"):
        auroc_error(np.array([0.1, 0.2]), np.ones(2))
