from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betainccinv
from scipy.stats import beta

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Guarantee, certify
from ctd_guardrail.policy.envelope import ALPHA_HIGH, ALPHA_LOW, Simultaneous, coverage, critical_eta
from ctd_guardrail.policy.guarantees import max_exceedances


@pytest.mark.parametrize(
    ("n", "ratios"),
    [
        (200, (0.30, 0.50, 0.65, 0.82)),
        (500, (0.52, 0.66, 0.77, 0.88)),
        (2000, (0.74, 0.82, 0.88, 0.94)),
        (10_000, (0.88, 0.92, 0.94, 0.97)),
    ],
)
def test_mean_rates_are_those_of_the_envelope_s_table(n: int, ratios: tuple[float, ...]) -> None:
    rule = Simultaneous(0.05)
    for alpha, ratio in zip((0.05, 0.1, 0.2, 0.5), ratios, strict=True):
        assert (rule.exceedances(n, alpha) + 1) / (n + 1) / alpha == pytest.approx(ratio, abs=0.006)


def test_for_one_rank_in_reach_the_coverage_is_that_of_its_beta_law() -> None:
    # n = 5 and eta = .05: b_1 = 1 - .05^(1/5) = .45 is in reach, b_2 = .66 is not.
    assert coverage(5, 0.05) == pytest.approx(0.95, abs=1e-12)


def test_for_two_ranks_in_reach_the_coverage_is_that_of_their_joint_law() -> None:
    n, eta = 8, 0.05
    first, second = betainccinv([1, 2], [n, n - 1], eta)
    assert second <= ALPHA_HIGH < betainccinv(3, n - 2, eta)
    # Either no uniform lies below b_1, or one does and all others lie above b_2.
    outside = (1 - first) ** n + n * first * (1 - second) ** (n - 1)
    assert coverage(n, eta) == pytest.approx(1 - outside, abs=1e-12)


@pytest.mark.parametrize("n", [50, 1000])
def test_the_coverage_is_what_uniform_samples_show(n: int) -> None:
    draws, eta = 20_000, critical_eta(n, 0.05)
    uniform = np.random.default_rng(0).random((draws, n))
    uniform.sort(axis=1)
    rule = Simultaneous(0.05)
    # Just above each bound, where the threshold steps down, and at the ends of the range.
    bounds = beta.isf(eta, np.arange(1, n), np.arange(n, 1, -1)) * (1 + 1e-9)
    alphas = np.concatenate([bounds, [ALPHA_LOW, ALPHA_HIGH]])
    alphas = alphas[(alphas >= ALPHA_LOW) & (alphas <= ALPHA_HIGH)]
    ranks = np.array([rule.exceedances(n, float(alpha)) + 1 for alpha in alphas])
    used = ranks >= 1
    held = (uniform[:, ranks[used] - 1] <= alphas[used]).all(axis=1).mean()
    expected = coverage(n, eta)
    assert held == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws))


@pytest.mark.parametrize("delta", [0.001, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 3, 5, 6, 20, 300, 3000])
def test_the_critical_eta_uses_delta_up_and_no_more(n: int, delta: float) -> None:
    eta = critical_eta(n, delta)
    missed = 1 - coverage(n, eta)
    assert missed <= delta * (1 + 1e-9)
    # Where a rank comes into reach the coverage jumps, and no eta may use delta up exactly.
    assert eta == delta or 1 - coverage(n, eta * 1.003) > delta


def test_a_simultaneous_budget_costs_more_than_a_fixed_one_and_less_than_the_union_bound() -> None:
    n, alpha = 1000, 0.1
    k = Simultaneous(0.05).exceedances(n, alpha)
    assert max_exceedances(n, alpha, 0.05 / n) < k < max_exceedances(n, alpha, 0.05)


@pytest.mark.parametrize("alpha", [0.001, 0.0099, 0.56, 0.9])
def test_budgets_outside_the_range_are_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        certify(np.arange(100.0), alpha, 0.05, guarantee=Guarantee.SIMULTANEOUS)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.5])
def test_the_rows_that_an_infeasible_budget_asks_for_are_enough(alpha: float) -> None:
    rule = Simultaneous(0.05)
    n = rule.rows(1, alpha)
    assert rule.exceedances(n, alpha) >= 0
    assert rule.exceedances(n - 2, alpha) == -1


@pytest.mark.parametrize("n", [10, 100, 5000])
def test_the_smallest_alpha_is_sharp(n: int) -> None:
    rule = Simultaneous(0.05)
    smallest = rule.budget(n)
    assert rule.exceedances(n, smallest * (1 + 1e-9)) >= 0
    assert smallest == ALPHA_LOW or rule.exceedances(n, smallest * (1 - 1e-6)) == -1


def test_two_rows_certify_no_alpha_in_the_range() -> None:
    assert Simultaneous(0.05).budget(2) == 1.0
    assert certify(np.arange(2.0), 0.5, 0.05, guarantee=Guarantee.SIMULTANEOUS).k == -1
