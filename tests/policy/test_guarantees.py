from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import betabinom

from ctd_guardrail.policy.guarantees import Exact, Expected, NextRequests, Rule, largest_count, max_exceedances


def test_a_share_written_as_count_over_total_gives_the_count_back() -> None:
    wrong = 0
    for total in range(1, 301):
        for count in range(total + 1):
            assert largest_count(total, count / total) == count
            wrong += math.floor(total * (count / total)) != count
    # What the integers are for: the product rounds to another count in some of these cells.
    assert wrong > 100


@pytest.mark.parametrize("alpha", ["0.01", "0.05", "0.1", "0.29", "0.3", "0.7"])
def test_expected_is_the_floor_of_the_decimal_that_was_written(alpha: str) -> None:
    for n in range(1, 500):
        exact = math.floor((n + 1) * Fraction(alpha)) - 1
        assert Expected().exceedances(n, float(alpha)) == exact


@pytest.mark.parametrize("n", [1, 7, 30, 200])
@pytest.mark.parametrize("horizon", [1, 10, 173, 1000])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.35, 0.9])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_next_is_the_largest_k_of_the_beta_binomial_tail(n: int, horizon: int, alpha: float, delta: float) -> None:
    k = np.arange(n)
    tails = betabinom.sf(math.floor(alpha * horizon), horizon, k + 1, n - k)
    assert NextRequests(delta, horizon).exceedances(n, alpha) == int((tails <= delta).sum()) - 1


def test_k_of_the_exact_guarantee_breaks_the_promise_about_the_next_thousand() -> None:
    n, horizon, alpha = 1000, 1000, 0.1
    k = max_exceedances(n, alpha, 0.05)
    assert betabinom.sf(100, horizon, k + 1, n - k) == pytest.approx(0.1084, abs=1e-4)
    k = NextRequests(0.05, horizon).exceedances(n, alpha)
    assert betabinom.sf(100, horizon, k + 1, n - k) <= 0.05


def test_next_over_a_long_horizon_approaches_exact() -> None:
    assert NextRequests(0.05, 10**7).exceedances(1000, 0.1) == max_exceedances(1000, 0.1, 0.05)


@pytest.mark.parametrize("rule", [Exact(0.05), Expected(), NextRequests(0.05, 100), NextRequests(0.05, 5000)])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.33, 0.7])
def test_the_smallest_n_of_each_guarantee_is_sharp(rule: Rule, alpha: float) -> None:
    n = rule.rows(1, alpha)
    assert rule.exceedances(n, alpha) >= 0
    assert n == 1 or rule.exceedances(n - 1, alpha) == -1


@pytest.mark.parametrize("rule", [Exact(0.05), Expected(), NextRequests(0.05, 100), NextRequests(0.05, 5000)])
@pytest.mark.parametrize("n", [20, 100, 1000])
def test_the_smallest_alpha_of_each_guarantee_is_sharp(rule: Rule, n: int) -> None:
    smallest = rule.budget(n)
    assert rule.exceedances(n, smallest * (1 + 1e-9)) >= 0
    assert rule.exceedances(n, smallest * (1 - 1e-9)) == -1


def test_a_horizon_that_no_rows_can_certify_has_no_smallest_alpha() -> None:
    assert NextRequests(0.001, 1).budget(10) == 1.0
