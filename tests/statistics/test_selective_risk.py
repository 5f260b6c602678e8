"""The certificate on inputs that are not delegated: how often it is false, and how often it is given."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import bdtr, bdtri
from scipy.stats import binom

from calibrate.risk.certify import certify_settings
from calibrate.risk.losses import Metric, Risk
from calibrate.risk.rows import Rows, Setting

N, DELTA, SLOPE = 400, 0.1, 0.4
METRICS = [Metric.PROBE_ERROR, Metric.PROBE_FALSE_OMISSION]


def draw(seed: int, n: int = N) -> Rows:
    """Draw rows of which the probe errs on a share of SLOPE x d, and the expert refuses every unsafe one in three.

    d is uniform and verdicts are symmetric. So both risks of the probe at lambda are SLOPE x lambda / 2.
    """
    rng = np.random.default_rng(seed)
    d, label = rng.random(n), (rng.random(n) < 0.5).astype(np.float64)
    probe = np.abs(label - (rng.random(n) < SLOPE * d))
    refused = (label == 1.0) & (rng.random(n) < 1 / 3)
    return Rows(d, probe, np.where(refused, np.nan, label), label)


def most(draws: int, share: float) -> float:
    """Return the largest share of draws that a probability produces, but for one case in 10,000."""
    return float(binom.ppf(1 - 1e-4, draws, share)) / draws


@pytest.mark.parametrize("metric", METRICS)
def test_a_false_bound_passes_in_at_most_delta_of_the_draws_and_not_much_less(metric: Metric) -> None:
    draws, setting = 2000, Setting(0.8)
    risk = Risk(metric, SLOPE * 0.8 / 2)
    p = np.array([risk.p_value(draw(seed), setting, delta=DELTA) for seed in range(draws)])
    for level in (0.01, 0.05, 0.1, 0.3):
        assert (p <= level).mean() <= most(draws, level)
    # Exact up to the steps of a binomial count: a bound that replaces the other rows' losses would pass less often.
    assert (p <= DELTA).mean() > 0.07


@pytest.mark.parametrize("metric", METRICS)
def test_any_false_certificate_is_given_in_at_most_delta_of_the_draws(metric: Metric) -> None:
    draws = 2000
    alpha, lambda_at_bound = 0.5, 0.7
    risk = Risk(metric, SLOPE * lambda_at_bound / 2)
    false = 0
    for seed in range(draws):
        outcome = certify_settings(draw(seed), [risk], alpha=alpha, delta=DELTA, candidates=12)
        # Below 1 - alpha the rate is broken, above lambda_at_bound the risk.
        false += any(not 1 - alpha <= setting.threshold <= lambda_at_bound for setting in outcome.certified)
    assert false / draws <= most(draws, DELTA)


@pytest.mark.parametrize("metric", METRICS)
def test_a_bound_with_room_is_certified(metric: Metric) -> None:
    risk = Risk(metric, SLOPE * 0.8 / 2)
    given = [certify_settings(draw(seed, 3000), [risk], alpha=0.5, delta=DELTA, candidates=20) for seed in range(20)]
    assert np.mean([outcome.setting is not None for outcome in given]) > 0.9


def test_a_lower_threshold_lowers_the_risk_of_what_is_kept() -> None:
    rows = draw(0, 5000)
    bounds = [Risk(Metric.PROBE_ERROR, 0.5).upper_bound(rows, Setting(t), delta=DELTA) for t in (0.3, 0.6, 1.0)]
    assert bounds == sorted(bounds)
    kept = int((rows.d <= 0.3).sum())
    wrong = int((np.abs(rows.label - rows.probe)[rows.d <= 0.3]).sum())
    assert bdtr(wrong, kept, bounds[0]) == pytest.approx(DELTA, rel=1e-6)
    assert bounds[0] == pytest.approx(bdtri(wrong, kept, DELTA), rel=1e-6)
