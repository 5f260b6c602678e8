"""MAPIE as an oracle: the same p-values and the same rejections wherever it is right."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.risk.pvalues import binomial_p, hoeffding_bentkus_p
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.policy.budget import certify

fwer_control = pytest.importorskip("mapie.risk_control.fwer_control")
mapie_methods = pytest.importorskip("mapie.risk_control.methods")
risk_control = pytest.importorskip("mapie.risk_control")


@pytest.mark.parametrize("level", [0.05, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("n", [10, 64, 200])
def test_p_values_agree(n: int, level: float) -> None:
    counts = np.arange(n)
    oracle = mapie_methods.compute_hoeffding_bentkus_p_value(counts / n, n, level)[:, 0]
    ours = [hoeffding_bentkus_p(float(count), n, level) for count in counts]
    exact = mapie_methods.compute_hoeffding_bentkus_p_value(counts / n, n, level, binary=True)[:, 0]
    # Its ceil(n * (count / n)) is the next integer in the cells where the product rounds up.
    clean = np.ceil(n * (counts / n)) == counts
    assert clean.mean() > 0.9
    np.testing.assert_allclose(np.array(ours)[clean], oracle[clean], rtol=1e-9)
    ours_exact = np.array([binomial_p(int(count), n, level) for count in counts])
    below = clean & (counts / n < level)
    np.testing.assert_allclose(ours_exact[below], exact[below], rtol=1e-9)


@pytest.mark.parametrize("seed", range(50))
def test_rejections_agree(seed: int) -> None:
    p = np.random.default_rng(seed).random(12) ** 4
    assert (
        np.flatnonzero(fixed_sequence(p, 0.1)).tolist() == fwer_control.control_fwer(p, 0.1, "fixed_sequence").tolist()
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_controller_with_bonferroni_is_never_less_conservative(seed: int) -> None:
    n, alpha, delta = 300, 0.2, 0.1
    scores = np.random.default_rng(seed).random(n)
    # It predicts 1 from the parameter upwards; our rule is strict, so its parameters sit just above the scores.
    parameters = np.nextafter(np.sort(scores)[150:], 2)
    controller = risk_control.BinaryClassificationController(
        predict_function=lambda x: np.column_stack([1 - x, x]),
        risk="predicted_positive_fraction",
        target_level=alpha,
        confidence_level=1 - delta,
        best_predict_param_choice="predicted_positive_fraction",
        list_predict_params=parameters,
        fwer_method="bonferroni",
    )
    controller.calibrate(scores, np.zeros(n, dtype=int))
    ours = certify(np.sort(scores), alpha, delta)
    assert controller.valid_predict_params.size > 0
    assert controller.valid_predict_params.min() > ours.threshold
    unadjusted = parameters[controller.p_values[:, 0] <= delta]
    # Without the correction its tests are ours: the closed form is their fixed sequence.
    assert np.nextafter(unadjusted.min(), -1) == ours.threshold
