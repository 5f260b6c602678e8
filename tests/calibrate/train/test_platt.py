import numpy as np
import pytest
from scipy.special import expit

from calibrate.train.platt import fit_scaling
from ctd_guardrail.probes.merge import log_odds


def test_scaling_recovers_the_slope_and_the_bias_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 40_000))
    labels = (rng.random(first.size) < expit(0.5 * first - 2.0 * second + 1.0)).astype(float)
    scaling = fit_scaling(labels, first, second)
    assert scaling.slopes == pytest.approx((0.5, -2.0), abs=0.06)
    assert scaling.bias == pytest.approx(1.0, abs=0.04)
    np.testing.assert_allclose(
        scaling(first, second), scaling.slopes[0] * first + scaling.slopes[1] * second + scaling.bias
    )


def test_the_slope_stays_finite_where_the_score_separates_the_labels() -> None:
    labels = np.repeat([0.0, 1.0], 50)
    scaling = fit_scaling(labels, log_odds(labels))
    probabilities = expit(scaling(log_odds(labels)))
    # Platt's targets: (50 + 1) / (50 + 2), not 1.
    assert probabilities[-1] == pytest.approx(51 / 52, abs=1e-3)
    assert probabilities[0] == pytest.approx(1 / 52, abs=1e-3)
