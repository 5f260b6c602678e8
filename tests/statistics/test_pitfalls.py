"""Every known mistake beside the procedure that avoids it: the mistake violates, the procedure does not.

A test fails when the mistake is put into the procedure, and it would also fail if the mistake were harmless: then the
precaution could go. Further rows of the list are held where they belong: integer counts in tests/policy, NaN scores in
tests/policy and tests/risk, repeated tests as a monitor in test_monitors_rate.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import bdtr, ndtr

from calibrate.risk.certify import certify_settings
from calibrate.risk.losses import Metric, Risk
from calibrate.risk.pvalues import binomial_p, wealth_p
from calibrate.risk.rows import Rows, Setting
from calibrate.risk.splits import one_per_cluster, require_disjoint
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import certify, max_exceedances
from ctd_guardrail.policy.spending import spent_delta

DELTA = 0.05
DRAWS = [300, pytest.param(3000, marks=pytest.mark.slow)]


def within(violation: float, draws: int, delta: float = DELTA) -> bool:
    return violation <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_scores_of_rows_that_trained_the_probe_calibrate_nothing(draws: int) -> None:
    n, width, alpha = 200, 60, 0.1
    seen = fresh = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        x, v = rng.normal(size=(2 * n, width)), rng.normal(size=n)
        weights = np.linalg.lstsq(x[:n], v, rcond=None)[0]
        d = x @ weights
        spread = float(np.linalg.norm(weights))  # d of a new row is normal with this deviation
        for rows, own in ((d[:n], True), (d[n:], False)):
            threshold = certify(np.sort(rows), alpha, DELTA).threshold
            violated = 1 - float(ndtr(threshold / spread)) > alpha
            seen += own and violated
            fresh += not own and violated
    assert seen / draws > 0.3
    assert within(fresh / draws, draws)
    with pytest.raises(DataError):
        require_disjoint(training=range(n), calibration=range(n - 1, 2 * n))


def _null_p_values(draws: int, configurations: int = 20) -> np.ndarray:
    counts = np.random.default_rng(0).binomial(1000, 0.1, size=(draws, configurations))
    return np.asarray(bdtr(counts, 1000, 0.1))


@pytest.mark.parametrize("draws", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_best_of_twenty_configurations_needs_a_correction(draws: int) -> None:
    p_values = _null_p_values(draws)
    assert (p_values.min(axis=1) <= DELTA).mean() > 0.5
    assert within(float(np.mean([fixed_sequence(p, DELTA).any() for p in p_values])), draws)


@pytest.mark.parametrize("draws", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_an_order_learnt_on_the_tested_rows_is_no_order(draws: int) -> None:
    p_values = _null_p_values(draws)
    learnt = [fixed_sequence(p, DELTA, np.argsort(p).tolist()).any() for p in p_values]
    given = [fixed_sequence(p, DELTA).any() for p in p_values]
    assert np.mean(learnt) > 0.5
    assert within(float(np.mean(given)), draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_delegating_at_the_threshold_itself_breaks_the_budget_where_scores_tie(draws: int) -> None:
    n, alpha = 200, 0.25
    rng = np.random.default_rng(1)
    strict = loose = 0
    for _ in range(draws):
        d = np.floor(rng.random(n) * 10) / 10
        threshold = certify(np.sort(d), alpha, DELTA).threshold
        # Of ten equally likely values, those above and those from the threshold on.
        above = round(9 - threshold * 10) / 10
        strict += above > alpha
        loose += above + 0.1 > alpha
    assert loose / draws > 0.3
    assert within(strict / draws, draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_the_sample_quantile_is_no_certificate(draws: int) -> None:
    n, alpha = 200, 0.1
    d = np.random.default_rng(2).random((draws, n))
    assert (1 - np.quantile(d, 1 - alpha, axis=1) > alpha).mean() > 0.4
    ours = np.array([certify(np.sort(row), alpha, DELTA).threshold for row in d])
    assert within(float((1 - ours > alpha).mean()), draws)


def test_the_normal_approximation_is_no_certificate() -> None:
    n, alpha = 200, 0.05
    rates = np.arange(n) / n
    passing = np.flatnonzero(rates + 1.645 * np.sqrt(rates * (1 - rates) / n) <= alpha)
    assert float(bdtr(passing.max(), n, alpha)) == pytest.approx(0.124, abs=0.001)
    assert float(bdtr(max_exceedances(n, alpha, DELTA), n, alpha)) <= DELTA


@pytest.mark.parametrize("draws", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_certificates_share_delta(draws: int) -> None:
    """Budget and error rate of a world in which the error rate sits at its bound at every threshold."""
    n, alpha, bound = 1000, 0.1, 0.2
    apart = joint = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        wrong = rng.random(n) < bound
        rows = Rows(rng.random(n), np.zeros(n), np.zeros(n), wrong.astype(np.float64))
        alone = certify(np.sort(rows.d), alpha, DELTA)
        passed = Risk(Metric.ERROR, bound).p_value(rows, Setting(alone.threshold), delta=DELTA) <= DELTA
        apart += passed or 1 - alone.threshold > alpha
        outcome = certify_settings(rows, alpha=alpha, delta=DELTA, risks=[Risk(Metric.ERROR, bound)], candidates=5)
        # Certifying anything is false here: the error rate is the bound, and the risk must be below it.
        budget = certify(np.sort(rows.d), alpha, DELTA / 2)
        joint += outcome.setting is not None or 1 - budget.threshold > alpha
    assert within(joint / draws, draws)
    exact = 1 - (1 - float(bdtr(84, n, alpha))) * (1 - float(bdtr(max_exceedances(n, bound, DELTA), n, bound)))
    assert exact == pytest.approx(0.09, abs=0.005)
    assert apart / draws == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / draws))


@pytest.mark.parametrize("draws", DRAWS)
def test_a_balanced_calibration_set_is_not_the_deployment(draws: int) -> None:
    n, alpha, deployed = 1000, 0.2, 0.8

    def rate(threshold: float) -> float:
        return deployed * (1 - float(ndtr(threshold - 1))) + (1 - deployed) * (1 - float(ndtr(threshold)))

    naive = deployment = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        unsafe = rng.random(n) < 0.5
        d = rng.normal(size=n) + unsafe
        naive += rate(certify(np.sort(d), alpha, DELTA).threshold) > alpha
        traffic = rng.normal(size=n) + (rng.random(n) < deployed)
        deployment += rate(certify(np.sort(traffic), alpha, DELTA).threshold) > alpha
    assert naive / draws > 0.99
    assert within(deployment / draws, draws)


@pytest.mark.parametrize("draws", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_recalibrating_until_it_passes_is_paid_for(draws: int) -> None:
    """A threshold whose true rate is alpha is looked at 38 times while calibration rows come in."""
    sizes = np.arange(1000, 1000 + 38 * 100, 100)
    rng = np.random.default_rng(3)
    first = rng.binomial(1000, 0.1, size=(draws, 1))
    counts = np.cumsum(np.hstack([first, rng.binomial(100, 0.1, size=(draws, 37))]), axis=1)
    free = np.array([max_exceedances(int(n), 0.1, DELTA) for n in sizes])
    paid = np.array([max_exceedances(int(n), 0.1, spent_delta(DELTA, i)) for i, n in enumerate(sizes, start=1)])
    assert (counts <= free).any(axis=1).mean() > 0.15
    assert within(float((counts <= paid).any(axis=1).mean()), draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_bets_on_sorted_losses_pass_anything(draws: int) -> None:
    n, level = 500, 0.1
    rng = np.random.default_rng(4)
    losses = np.sort((rng.random((draws, n)) < level).astype(np.float64), axis=1)
    assert np.mean([wealth_p(row, level, DELTA) <= DELTA for row in losses]) > 0.99
    shuffled = [wealth_p(rng.permutation(row), level, DELTA) <= DELTA for row in losses]
    assert within(float(np.mean(shuffled)), draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_turns_of_one_conversation_are_not_independent_rows(draws: int) -> None:
    conversations, copies, alpha = 100, 5, 0.1
    clusters = np.repeat(np.arange(conversations), copies)
    rng = np.random.default_rng(5)
    pooled = chosen = 0
    for seed in range(draws):
        d = np.repeat(rng.random(conversations), copies)
        pooled += 1 - certify(np.sort(d), alpha, DELTA).threshold > alpha
        kept = d[one_per_cluster(clusters.tolist(), seed=seed)]
        chosen += 1 - certify(np.sort(kept), alpha, DELTA).threshold > alpha
    assert pooled / draws > 0.15
    assert within(chosen / draws, draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_rows_that_the_expert_refuses_count_in_the_budget(draws: int) -> None:
    n, alpha = 1000, 0.1
    counted = left_out = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        d = rng.random(n)
        # One row in a hundred is refused, and all of these are among the tenth with the largest d.
        scored = d[(d < 0.9) | (rng.random(n) > 0.1)]
        for rows, is_whole in ((d, True), (scored, False)):
            violated = 1 - certify(np.sort(rows), alpha, DELTA).threshold > alpha
            counted += is_whole and violated
            left_out += not is_whole and violated
    assert left_out / draws > 0.15
    assert within(counted / draws, draws)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    # Round to nearest, ties to even, on the upper 16 bits.
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


@pytest.mark.parametrize("draws", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_calibration_in_another_dtype_than_serving_moves_the_rate(draws: int) -> None:
    """Scores around 16, where bfloat16 has steps of an eighth: thresholds within one step serve the same rate."""
    n, alpha, centre = 2000, 0.1, 16.04
    rng = np.random.default_rng(6)
    served = _bfloat16(rng.normal(size=10**6) + centre)
    served.sort()

    def rate(threshold: float) -> float:
        return 1 - float(np.searchsorted(served, threshold, side="right")) / served.size

    mixed = same = 0
    for _ in range(draws):
        d = rng.normal(size=n) + centre
        mixed += rate(certify(np.sort(d), alpha, DELTA).threshold) > alpha
        same += rate(certify(np.sort(_bfloat16(d)), alpha, DELTA).threshold) > alpha
    assert mixed / draws > 0.12
    assert within(same / draws, draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_the_chosen_configuration_s_own_score_flatters_it(draws: int) -> None:
    rng = np.random.default_rng(7)
    errors = rng.binomial(500, 0.15, size=(draws, 100)) / 500
    fresh = rng.binomial(500, 0.15, size=draws) / 500
    assert errors.min(axis=1).mean() < 0.12
    assert fresh.mean() == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / 500 / draws))


def test_a_threshold_decides_one_by_one_as_in_a_batch_and_top_k_does_not() -> None:
    rng = np.random.default_rng(8)
    threshold = certify(np.sort(rng.random(1000)), 0.1, DELTA).threshold
    d = rng.random(640)

    def decide(batch: np.ndarray) -> np.ndarray:
        return batch > threshold

    def top_k(batch: np.ndarray) -> np.ndarray:
        return batch >= np.sort(batch)[-max(1, batch.size // 10)]

    for rule, consistent in ((decide, True), (top_k, False)):
        whole = rule(d)
        order = rng.permutation(d.size)
        batches = np.concatenate([rule(batch) for batch in np.split(d[order], 20)])
        singly = np.array([rule(d[i : i + 1])[0] for i in range(d.size)])
        assert (batches[np.argsort(order)] == whole).all() == consistent
        assert (singly == whole).all() == consistent


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("metric", [Metric.BRIER, Metric.AUROC_ERROR, Metric.FNR])
def test_a_risk_at_its_bound_is_certified_in_at_most_delta_of_the_draws(metric: Metric, draws: int) -> None:
    """Scores uniform given the label: Brier 1/3, AUROC 1/2, missed 1/2 at tau = .5."""
    bound = 1 / 3 if metric is Metric.BRIER else 0.5
    certified = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        rows = Rows(np.zeros(300), rng.random(300), np.zeros(300), (rng.random(300) < 0.3).astype(np.float64))
        certified += Risk(metric, bound).p_value(rows, Setting(0.0), delta=DELTA) <= DELTA
    assert within(certified / draws, draws)


def test_the_binomial_p_value_is_exact_at_the_bound() -> None:
    n, level = 300, 0.1
    law = np.diff(np.concatenate([[0.0], bdtr(np.arange(n + 1), n, level)]))
    p = np.array([binomial_p(count, n, level) for count in range(n + 1)])
    for u in (0.01, 0.05, 0.1, 0.5):
        assert law[p <= u].sum() <= u
