from __future__ import annotations

import math

import numpy as np
import pytest

from calibrate.risk.cost import certify_cost
from calibrate.risk.groups import certify_groups
from calibrate.risk.shift import certify_shifted, thin
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Status, certify, sort_scores


def test_a_cost_budget_is_met_and_mostly_used() -> None:
    rng = np.random.default_rng(0)
    d = rng.random(5000)
    tokens = np.minimum(1000.0, rng.gamma(2, 100, 5000) * (0.5 + d))
    certificate = certify_cost(d, tokens, budget=60.0, delta=0.05, largest=1000.0)
    assert certificate.status is Status.CERTIFIED
    assert 45.0 < certificate.mean_cost < 60.0
    assert certificate.n == 4500


def test_a_cost_budget_that_no_threshold_meets_delegates_nothing() -> None:
    certificate = certify_cost(np.arange(20.0), np.ones(20), budget=0.01, delta=0.05, largest=1.0)
    assert (certificate.status, certificate.threshold, certificate.mean_cost) == (Status.INFEASIBLE, math.inf, 0.0)


@pytest.mark.parametrize("cost", [math.nan, -1.0, 101.0])
def test_costs_beyond_the_stated_largest_are_refused_with_their_row(cost: float) -> None:
    with pytest.raises(DataError, match="row 3"):
        certify_cost(np.arange(5.0), np.array([1.0, 1.0, cost, 1.0, 1.0]), budget=1.0, delta=0.05, largest=100.0)


@pytest.mark.parametrize("budget", [0.0, 100.0, math.nan])
def test_a_cost_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        certify_cost(np.arange(5.0), np.ones(5), budget=budget, delta=0.05, largest=100.0)


def test_every_group_has_the_certificate_of_its_own_rows_at_its_part_of_delta() -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.random(900), ["a", "b", "c"] * 300
    certificates = certify_groups(scores, groups, 0.1, 0.06)
    assert set(certificates) == {"a", "b", "c"}
    assert certificates["b"] == certify(np.sort(scores[1::3]), 0.1, 0.02)


def test_a_group_of_too_few_rows_is_infeasible_by_itself() -> None:
    certificates = certify_groups(np.arange(105.0), ["big"] * 100 + ["small"] * 5, 0.1, 0.1)
    assert certificates["big"].status is Status.CERTIFIED
    assert certificates["small"].status is Status.INFEASIBLE


def test_a_bad_score_in_a_group_is_named_by_its_row_in_the_column() -> None:
    with pytest.raises(DataError, match="row 4"):
        certify_groups(np.array([0.1, 0.2, 0.3, math.nan]), ["a", "b", "a", "b"], 0.1, 0.1)


def test_equal_weights_at_the_bound_change_nothing() -> None:
    scores = np.random.default_rng(0).random(500)
    assert certify_shifted(scores, np.full(500, 2.0), 0.1, 0.05, bound=2.0) == certify(sort_scores(scores), 0.1, 0.05)


def test_rows_are_kept_in_proportion_to_their_weights() -> None:
    weights = np.repeat([0.0, 1.0, 2.0], 10_000)
    kept = np.bincount(thin(weights, 2.0) // 10_000, minlength=3)
    assert kept[0] == 0
    assert kept[1] == pytest.approx(5000, abs=4 * math.sqrt(2500))
    assert kept[2] == 10_000


@pytest.mark.parametrize("weight", [math.nan, -0.1, 2.1])
def test_weights_beyond_the_bound_are_refused_with_their_row(weight: float) -> None:
    with pytest.raises(DataError, match="row 2"):
        thin(np.array([1.0, weight]), 2.0)


def test_a_bound_that_is_none_and_a_sample_that_is_empty_are_refused() -> None:
    with pytest.raises(ConfigError, match="bound"):
        thin(np.ones(3), 0.0)
    with pytest.raises(DataError, match="no row is left"):
        certify_shifted(np.arange(3.0), np.zeros(3), 0.1, 0.05, bound=1.0)
