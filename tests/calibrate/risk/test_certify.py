from __future__ import annotations

import math

import numpy as np
import pytest

from calibrate.risk.certify import certify_settings
from calibrate.risk.losses import Metric, Risk, risk_value
from calibrate.risk.outcome import BUDGET, top_thresholds
from calibrate.risk.rows import Rows
from calibrate.risk.splits import Split
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Status, certify, sort_scores
from ctd_guardrail.policy.turns import TurnScores


def _rows(n: int = 1000, seed: int = 0) -> Rows:
    """A probe that errs on 24% of the rows, an expert that errs on 10%, and d that knows roughly where it helps."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(np.float64)
    probe = 1 / (1 + np.exp(-1.2 * (rng.normal(size=n) + 0.72 * (2 * label - 1))))
    expert = 1 / (1 + np.exp(-2.5 * (0.9 * (2 * label - 1) + 0.7 * rng.normal(size=n))))
    return Rows(-np.abs(probe - 0.5) + 0.15 * rng.normal(size=n), probe, expert, label)


def test_a_certified_setting_meets_budget_and_risk_on_the_population() -> None:
    risk = Risk(Metric.ERROR, 0.25)
    outcome = certify_settings(_rows(2000), alpha=0.3, delta=0.1, risks=[risk])
    assert outcome.status is Status.CERTIFIED
    assert outcome.setting in outcome.certified
    population = _rows(200_000, seed=1)
    for setting in outcome.certified:
        assert population.delegated(setting).mean() <= 0.3
        assert risk_value(risk.metric, population, setting) <= risk.max


def test_rows_without_an_expert_score_count_in_the_budget() -> None:
    rows, population = _rows(3000), _rows(200_000, seed=1)
    # The expert refuses what d ranks highest: without these rows the budget looks smaller than it is.
    is_refused = rows.d > np.quantile(population.d, 0.9)
    refused = Rows(rows.d, rows.probe, np.where(is_refused, np.nan, rows.expert), rows.label)
    arguments = {"alpha": 0.3, "delta": 0.1, "risks": [Risk(Metric.ERROR, 0.4)]}
    rates = {}
    for name, outcome in {
        "counted": certify_settings(refused, **arguments),
        "left out": certify_settings(rows.take(np.flatnonzero(~is_refused)), **arguments),
    }.items():
        assert outcome.status is Status.CERTIFIED
        rates[name] = max(population.delegated(setting).mean() for setting in outcome.certified)
    assert 0.2 < rates["counted"] <= 0.3 < rates["left out"]


def test_an_infeasible_risk_is_named_with_what_would_be_feasible() -> None:
    outcome = certify_settings(_rows(), alpha=0.3, delta=0.1, risks=[Risk(Metric.ERROR, 0.3), Risk(Metric.FNR, 0.05)])
    assert (outcome.status, outcome.setting, outcome.certified) == (Status.INFEASIBLE, None, ())
    assert outcome.binding == ("fnr",)
    assert 0.05 < outcome.feasible["fnr"] < 0.6
    retry = certify_settings(_rows(), alpha=0.3, delta=0.1, risks=[Risk(Metric.FNR, outcome.feasible["fnr"] + 0.05)])
    assert retry.status is Status.CERTIFIED


def test_an_infeasible_budget_is_named_with_the_smallest_that_would_do() -> None:
    rows = _rows(100)
    outcome = certify_settings(rows, alpha=0.01, delta=0.1, risks=[Risk(Metric.ERROR, 0.5)])
    assert outcome.binding == (BUDGET,)
    assert certify(sort_scores(rows.d), outcome.feasible[BUDGET] * (1 + 1e-9), 0.05).status is Status.CERTIFIED


def test_a_risk_that_only_a_larger_budget_can_meet_binds_the_budget() -> None:
    rows = _rows(3000)
    # The thresholds are chosen on rows that the expert refuses half as often as the tested ones.
    split = Split(np.arange(900), np.arange(900, 3000))
    d = np.concatenate([rows.d[:900], rows.d[900:] + 10 * (np.arange(2100) % 2)])
    shifted = Rows(d, rows.probe, rows.expert, rows.label)
    outcome = certify_settings(shifted, alpha=0.3, delta=0.1, risks=[Risk(Metric.ERROR, 0.19)], split=split)
    assert outcome.binding == (BUDGET,)
    assert outcome.feasible[BUDGET] > 0.3


def test_turns_beside_the_labelled_rows_count_in_the_budget() -> None:
    rows = _rows(2000)
    arguments = {"alpha": 0.3, "delta": 0.1, "risks": [Risk(Metric.ERROR, 0.4)]}
    # Each conversation has two more turns, of which the later ones score higher.
    turns = TurnScores.of(np.concatenate([rows.d, rows.d + 0.2, rows.d + 0.4]), np.tile(np.arange(2000), 3))
    bound = certify(turns, 0.3, 0.05)
    outcome = certify_settings(rows, **arguments, turns=turns)
    assert outcome.status is Status.CERTIFIED
    assert min(setting.threshold for setting in outcome.certified) >= bound.threshold
    alone = certify_settings(rows, **arguments)
    assert min(setting.threshold for setting in alone.certified) < bound.threshold


def test_the_smallest_budget_of_turns_that_would_do_is_named() -> None:
    rows = _rows(3000)
    # All other turns score higher than the labelled ones, so every threshold of those delegates them.
    turns = TurnScores.of(np.concatenate([rows.d, rows.d + 10]), np.tile(np.arange(3000), 2))
    outcome = certify_settings(rows, alpha=0.3, delta=0.1, risks=[Risk(Metric.ERROR, 0.19)], turns=turns)
    assert outcome.binding == (BUDGET,)
    smallest = outcome.feasible[BUDGET]
    assert smallest > 0.5
    assert certify(turns, smallest + 1e-6, 0.05).threshold < rows.d.max() < certify(turns, 0.5, 0.05).threshold


def test_it_certifies_no_threshold_below_the_closed_form_s() -> None:
    rows = _rows()
    outcome = certify_settings(rows, alpha=0.2, delta=0.1, risks=[Risk(Metric.ERROR, 0.4)])
    lowest = certify(sort_scores(rows.d), 0.2, 0.05).threshold
    assert outcome.certified
    assert min(setting.threshold for setting in outcome.certified) >= lowest


def test_lambda_and_tau_are_chosen_together() -> None:
    # At tau = .5 the cascade misses too much harm; a lower tau trades it for false alarms.
    risks = [Risk(Metric.FNR, 0.12), Risk(Metric.FPR, 0.5)]
    fixed = certify_settings(_rows(2000), alpha=0.3, delta=0.1, risks=risks)
    assert fixed.binding == ("fnr",)
    joint = certify_settings(_rows(2000), alpha=0.3, delta=0.1, risks=risks, taus=np.linspace(0.2, 0.6, 9).tolist())
    assert joint.setting is not None
    assert joint.setting.tau < 0.5


def test_an_abstain_band_buys_accuracy_with_silence() -> None:
    risks = [Risk(Metric.ERROR, 0.15), Risk(Metric.ABSTAINED, 0.4)]
    assert certify_settings(_rows(3000), alpha=0.3, delta=0.1, risks=risks).binding == ("error",)
    banded = certify_settings(_rows(3000), alpha=0.3, delta=0.1, risks=risks, bands=(0.0, 0.1, 0.15, 0.2))
    assert banded.setting is not None
    assert banded.setting.band > 0


def test_a_given_split_is_used() -> None:
    rows = _rows()
    split = Split(np.arange(300), np.arange(300, 1000))
    mangled = Rows(rows.d, rows.probe, rows.expert, np.where(np.arange(1000) < 300, rows.label, 1 - rows.label))
    assert certify_settings(rows, alpha=0.3, delta=0.1, risks=[Risk(Metric.ERROR, 0.3)], split=split).certified
    assert not certify_settings(mangled, alpha=0.3, delta=0.1, risks=[Risk(Metric.ERROR, 0.3)], split=split).certified


def test_certification_without_a_risk_is_refused() -> None:
    with pytest.raises(ConfigError, match="risk"):
        certify_settings(_rows(), alpha=0.3, delta=0.1, risks=[])


def test_thresholds_run_from_none_to_the_share() -> None:
    d = np.arange(100.0)
    thresholds = top_thresholds(d, 0.3, 100)
    assert thresholds[0] == math.inf
    assert [(d > t).sum() for t in thresholds[1:]] == list(range(31))
    assert top_thresholds(d, 1.0, 5).size == 5
    assert (np.diff(top_thresholds(np.zeros(50), 1.0, 10)) < 0).all()
