"""The budget certificates against populations that are known exactly.

Violation is measured on the population itself: on an evaluation set of hundreds of rows the noise of the set alone
doubles it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import bdtr, ndtr
from scipy.stats import betabinom, binom

from ctd_guardrail.policy.budget import Guarantee, certify, max_exceedances
from ctd_guardrail.policy.envelope import ALPHA_HIGH, ALPHA_LOW, Simultaneous
from ctd_guardrail.policy.ties import sort_with_ties, tie_threshold

DRAWS = [500, pytest.param(5000, marks=pytest.mark.slow)]
CELLS = [(200, 0.05), (200, 0.1), (200, 0.3), (1000, 0.05), (1000, 0.1), (1000, 0.2), (1000, 0.5), (5000, 0.05),
         (5000, 0.1), (5000, 0.3)]  # fmt: skip


def in_band(count: int, draws: int, probability: float) -> bool:
    """Whether a count of events lies within the two-sided binomial band at 1e-4."""
    low, high = binom.ppf([0.5e-4, 1 - 0.5e-4], draws, probability)
    return bool(low <= count <= high)


def within(violation: float, delta: float, draws: int) -> bool:
    return violation <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


def uniform_rates(n: int, k: int, draws: int, seed: int) -> np.ndarray:
    """Return P(d > lambda) for uniform d and the lambda of each draw, shape [draws]."""
    rng = np.random.default_rng(seed)
    return np.array([1 - np.partition(rng.random(n), n - 1 - k)[n - 1 - k] for _ in range(draws)])


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("delta", [0.05, 0.1])
@pytest.mark.parametrize(("n", "alpha"), CELLS)
def test_violation_and_mean_rate_are_those_of_the_beta_law(n: int, alpha: float, delta: float, draws: int) -> None:
    certificate = certify(np.arange(float(n)), alpha, delta)
    rates = uniform_rates(n, certificate.k, draws, seed=n)
    probability = float(bdtr(certificate.k, n, alpha))
    assert probability <= delta
    assert in_band(int((rates > alpha).sum()), draws, probability)
    error = math.sqrt(certificate.mean_rate * (1 - certificate.mean_rate) / (n + 2) / draws)
    assert rates.mean() == pytest.approx(certificate.mean_rate, abs=4 * error)


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def _rounded(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.floor(rng.normal(size=n) * 10) / 10


def _half_zero(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.maximum(0.0, rng.normal(size=n))


LAWS: dict[Callable[[np.random.Generator, int], np.ndarray], Callable[[float], float]] = {
    _normal: lambda t: 1 - float(ndtr(t)),
    _rounded: lambda t: 1 - float(ndtr((round(t * 10) + 1) / 10)),
    _half_zero: lambda t: 1 - float(ndtr(t)) if t >= 0 else 1.0,
}


@pytest.mark.parametrize("draws", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("n", "alpha", "delta"), [(100, 0.1, 0.1), (500, 0.05, 0.05), (1000, 0.3, 0.05)])
@pytest.mark.parametrize("law", LAWS)
def test_violation_is_within_delta_for_smooth_rounded_and_tied_scores(
    law: Callable[[np.random.Generator, int], np.ndarray], n: int, alpha: float, delta: float, draws: int
) -> None:
    rng = np.random.default_rng(n)
    thresholds = [certify(np.sort(law(rng, n)), alpha, delta).threshold for _ in range(draws)]
    violation = np.mean([LAWS[law](threshold) > alpha for threshold in thresholds])
    assert within(float(violation), delta, draws)


@pytest.mark.parametrize("draws", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_ties_bring_the_beta_law_back(draws: int) -> None:
    rng = np.random.default_rng(0)
    n, alpha = 200, 0.1
    rates = []
    for _ in range(draws):
        scores, uniforms = sort_with_ties(rng.integers(0, 5, n).astype(np.float64), rng.random(n))
        certificate = certify(scores, alpha, 0.05)
        rule = tie_threshold(certificate, scores, uniforms)
        rates.append((4 - rule.threshold) / 5 + (1 - rule.v) / 5)
    assert in_band(int((np.array(rates) > alpha).sum()), draws, float(bdtr(certificate.k, n, alpha)))
    assert np.mean(rates) == pytest.approx(certificate.mean_rate, abs=4 * np.std(rates) / math.sqrt(draws))


@pytest.mark.parametrize("draws", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_expected_holds_on_average_and_violates_in_half_of_the_draws(draws: int) -> None:
    n, alpha = 1000, 0.1
    certificate = certify(np.arange(float(n)), alpha, 0.05, guarantee=Guarantee.EXPECTED)
    rates = uniform_rates(n, certificate.k, draws, seed=1)
    assert rates.mean() <= alpha + 4 * rates.std() / math.sqrt(draws)
    assert 0.4 < (rates > alpha).mean() < 0.6


@pytest.mark.parametrize("draws", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_next_bounds_the_count_itself(draws: int) -> None:
    n, alpha, horizon = 1000, 0.1, 1000
    rng = np.random.default_rng(2)
    for guarantee, probability in ((Guarantee.NEXT, None), (Guarantee.EXACT, 0.1084)):
        k = certify(
            np.arange(float(n)), alpha, 0.05, guarantee=guarantee, horizon=horizon if probability is None else None
        ).k
        over = (rng.binomial(horizon, uniform_rates(n, k, draws, seed=3)) > alpha * horizon).sum()
        exact = float(betabinom.sf(100, horizon, k + 1, n - k))
        assert exact <= 0.05 if probability is None else exact == pytest.approx(probability, abs=1e-4)
        assert in_band(int(over), draws, exact)


@pytest.mark.parametrize("draws", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_budget_chosen_after_looking_needs_the_envelope(draws: int) -> None:
    n, delta = 500, 0.05
    alphas = np.linspace(ALPHA_LOW, ALPHA_HIGH, 1081)
    rng = np.random.default_rng(4)
    top = 1 - np.sort(rng.random((draws, n)), axis=1)[:, ::-1]  # top[:, k]: the rate of the threshold with k above it
    violations = {}
    for name, exceedances in {
        "per alpha": lambda alpha: max_exceedances(n, alpha, delta),
        "envelope": lambda alpha: Simultaneous(delta).exceedances(n, alpha),
    }.items():
        ks = np.array([exceedances(float(alpha)) for alpha in alphas])
        violated = (top[:, ks[ks >= 0]] > alphas[ks >= 0]).any(axis=1)
        violations[name] = float(violated.mean())
    assert violations["per alpha"] > 0.25
    assert within(violations["envelope"], delta, draws)
    # A grid of alphas sees a little less than all of them; the envelope is not loose either.
    assert violations["envelope"] > 0.02
