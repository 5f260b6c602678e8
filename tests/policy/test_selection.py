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


def _standard_error(criterion: Criterion, columns: dict[str, np.ndarray], threshold: float, costs: Costs) -> float:
    """Of the gain over no delegation, from the definitions: every row by itself, every pair of rows for AUROC."""
    delegated, label = columns["d"] > threshold, columns["label"]
    scores = [columns["probe"], np.where(delegated, columns["expert"], columns["probe"])]
    if criterion is Criterion.AUROC:
        pairs = [score[label == 1][:, None] - score[label == 0] for score in scores]
        right = [(gap > 0) + (gap == 0) / 2 for gap in pairs]
        change = right[1] - right[0]
        return math.sqrt(sum(change.mean(axis=axis).var(ddof=1) / change.shape[1 - axis] for axis in (0, 1)))
    rows = [{name: column[[i]] for name, column in columns.items()} for i in range(label.size)]
    risks = [[_risk(criterion, row, t, costs) for row in rows] for t in (math.inf, threshold)]
    return float(np.std(np.subtract(*risks), ddof=1)) / math.sqrt(label.size)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(40, 120),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([3, 20, 10**6]),
    criterion=st.sampled_from([Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER, Criterion.COST]),
    skill=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_the_best_certified_threshold_is_taken_where_its_gain_is_no_chance(
    n: int, seed: int, levels: int, criterion: Criterion, skill: float
) -> None:
    columns = _columns(n, seed, levels)
    columns["expert"] = (1 - skill) * columns["expert"] + skill * columns["label"]
    costs = Costs(missed=3.0, false_alarm=0.5, call=0.1)
    certificate = certify(sort_scores(columns["d"]), 0.3, 0.1)
    choice = best_threshold(certificate, criterion, **columns, costs=costs)
    assert choice.threshold >= certificate.threshold
    assert choice.exceedances == (columns["d"] > choice.threshold).sum() <= certificate.k
    assert choice.risk == pytest.approx(_risk(criterion, columns, choice.threshold, costs), abs=1e-12)
    rivals = [t for t in [*columns["d"], certificate.threshold] if t >= certificate.threshold]
    risks = {t: _risk(criterion, columns, t, costs) for t in rivals}
    # Among equals the one that asks the expert least.
    best = max(t for t, risk in risks.items() if risk <= min(risks.values()) + 1e-12)
    gain = risks[max(rivals)] - risks[best]
    needed = 2.0 * _standard_error(criterion, columns, best, costs)
    if abs(gain - needed) > 1e-9:
        assert choice.threshold == (best if gain > needed else max(rivals))


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


@pytest.mark.parametrize("criterion", [Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER])
def test_an_expert_of_no_use_is_seldom_asked_and_a_good_one_always(criterion: Criterion) -> None:
    rng = np.random.default_rng(0)
    asked = {0.0: 0, 0.5: 0}
    for _ in range(60):
        label = (rng.random(600) < 0.4).astype(np.float64)
        probe, noise = np.clip(rng.normal(0.35 + 0.3 * label, 0.2, (2, 600)), 0, 1)
        certificate = certify(np.sort(d := rng.random(600)), 0.5, 0.1)
        for skill in asked:
            expert = (1 - skill) * noise + skill * label
            choice = best_threshold(certificate, criterion, d=d, probe=probe, expert=expert, label=label)
            asked[skill] += choice.exceedances > 0
    # The largest of many gains passes more often than one time in forty.
    assert asked[0.0] < 12
    assert asked[0.5] == 60


def test_two_rows_show_nothing() -> None:
    certificate = certify(np.arange(1000.0), 0.3, 0.1)
    columns = {"probe": np.array([0.4, 0.6]), "expert": np.array([0.9, 0.1]), "label": np.array([1.0, 0.0])}
    choice = best_threshold(certificate, Criterion.AUROC, d=np.array([2000.0, 3000.0]), **columns)
    assert choice.exceedances == 0


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
