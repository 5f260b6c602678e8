import numpy as np
import pytest
from scipy.stats import beta, betabinom

from calibrate.report.law import BAND, RateLaw
from ctd_guardrail.policy.budget import certify


@pytest.mark.parametrize(("k", "n"), [(84, 1000), (0, 29), (28, 29), (499, 1000)])
def test_the_bands_are_quantiles_of_the_laws(k: int, n: int) -> None:
    law = RateLaw(k, n)
    assert law.rates() == pytest.approx(beta.interval(BAND, k + 1, n - k))
    assert law.calls(1000) == betabinom.interval(BAND, 1000, k + 1, n - k)
    low, high = law.calls(1000)
    inside = betabinom.cdf(high, 1000, k + 1, n - k) - betabinom.cdf(low - 1, 1000, k + 1, n - k)
    assert BAND <= inside < BAND + 0.1


def test_calls_of_simulated_calibrations_fall_into_the_band() -> None:
    rng = np.random.default_rng(0)
    n, alpha, draws = 200, 0.2, 2000
    scores = np.sort(rng.random((draws, n)), axis=1)
    certificates = [certify(row, alpha, 0.1) for row in scores]
    calls = rng.binomial(1000, 1 - np.array([certificate.threshold for certificate in certificates]))
    law = RateLaw(certificates[0].k, n)
    low, high = law.calls(1000)
    # Four standard deviations of 2,000 draws are .027.
    assert np.mean((calls >= low) & (calls <= high)) == pytest.approx(BAND, abs=0.03)
    assert calls.mean() == pytest.approx(1000 * (law.k + 1) / (n + 1), rel=0.02)
