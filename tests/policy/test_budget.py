from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import (
    Certificate,
    Guarantee,
    Status,
    certify,
    infeasible,
    max_exceedances,
    min_alpha,
    min_rows,
    round_up,
    sort_scores,
)
from ctd_guardrail.policy.spending import budget_beside_audit

FINITE = st.floats(-1e6, 1e6)
COLUMNS = hnp.arrays(np.float64, st.integers(30, 80), elements=FINITE)


@pytest.mark.parametrize(
    ("n", "alpha", "at_5_percent", "at_10_percent"),
    [
        (200, 0.05, 4, 5),
        (200, 0.1, 12, 14),
        (200, 0.3, 48, 51),
        (1000, 0.05, 38, 40),
        (1000, 0.1, 84, 87),
        (1000, 0.2, 178, 183),
        (1000, 0.5, 473, 479),
        (5000, 0.05, 224, 229),
        (5000, 0.1, 464, 472),
        (5000, 0.3, 1446, 1458),
    ],
)
def test_k_is_that_of_the_acceptance_table(n: int, alpha: float, at_5_percent: int, at_10_percent: int) -> None:
    assert max_exceedances(n, alpha, 0.05) == at_5_percent
    assert max_exceedances(n, alpha, 0.1) == at_10_percent


def test_k_equals_brute_force_for_every_n_up_to_400() -> None:
    deltas = (0.001, 0.01, 0.05, 0.1, 0.3)
    for alpha in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 0.99):
        law = np.ones(1)
        for n in range(1, 401):
            # One more Bernoulli(alpha): the binomial law by convolution, no special function involved.
            law = np.append(law * (1 - alpha), 0.0) + np.append(0.0, law * alpha)
            tail = np.cumsum(law)
            for delta in deltas:
                k = max_exceedances(n, alpha, delta)
                assert k == -1 or tail[k] <= delta * (1 + 1e-9)
                assert tail[k + 1] > delta * (1 - 1e-9)


def test_k_at_a_million_rows_is_the_binomial_quantile() -> None:
    k = max_exceedances(10**6, 0.1, 0.05)
    assert k == 99_506
    assert max_exceedances(10**6, 1e-9, 0.05) == -1


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("delta", [0.001, 0.05, 0.1, 0.5])
def test_the_smallest_n_and_the_smallest_alpha_are_sharp(alpha: float, delta: float) -> None:
    n = min_rows(alpha, delta)
    assert max_exceedances(n, alpha, delta) >= 0
    assert n == 1 or max_exceedances(n - 1, alpha, delta) == -1
    smallest = min_alpha(n, delta)
    assert smallest == pytest.approx(1 - delta ** (1 / n))
    assert max_exceedances(n, smallest * (1 + 1e-9), delta) == 0
    assert max_exceedances(n, smallest * (1 - 1e-9), delta) == -1


@given(n=st.integers(1, 3000), delta=st.floats(1e-3, 0.2), guarantee=st.sampled_from(["exact", "expected", "next"]))
def test_the_alpha_that_a_hint_names_is_feasible(n: int, delta: float, guarantee: str) -> None:
    options: dict[str, Any] = {"guarantee": Guarantee(guarantee), "horizon": 1000 if guarantee == "next" else None}
    certificate = certify(np.zeros(n), 1e-5, delta, **options)
    assert certificate.status is Status.INFEASIBLE
    error = infeasible(certificate, key="ctd.alpha")
    assert str(error).startswith(f"ctd.alpha: {n} calibration rows cannot certify alpha = 1e-05")
    hinted = re.match(r"The smallest alpha that they can certify is ([0-9.]+);", error.hint)
    if hinted is None:
        assert round_up(certificate.alpha_min) == 1
    else:
        assert certify(np.zeros(n), float(hinted[1]), delta, **options).status is Status.CERTIFIED


def test_the_alpha_that_a_hint_names_leaves_room_for_audits() -> None:
    error = infeasible(certify(np.zeros(200), 0.005, 0.1), key="alpha", audit_share=0.02)
    assert "certify is 0.0313;" in error.hint
    assert certify(np.zeros(200), budget_beside_audit(0.0313, 0.02), 0.1).status is Status.CERTIFIED
    assert certify(np.zeros(200), budget_beside_audit(0.0312, 0.02), 0.1).status is Status.INFEASIBLE


def test_a_certificate_states_threshold_and_expected_rate() -> None:
    scores = np.arange(1000.0)
    certificate = certify(scores, 0.1, 0.05)
    assert certificate == Certificate(
        status=Status.CERTIFIED,
        threshold=915.0,
        k=84,
        n=1000,
        alpha=0.1,
        delta=0.05,
        mean_rate=85 / 1001,
        conversations=1000,
        turns=1000,
        n_min=29,
        alpha_min=min_alpha(1000, 0.05),
    )
    assert (scores > certificate.threshold).sum() == 84


def test_too_few_rows_delegate_nothing_and_say_how_many_would_do() -> None:
    certificate = certify(np.arange(28.0), 0.1, 0.05)
    assert (certificate.status, certificate.k, certificate.threshold) == (Status.INFEASIBLE, -1, math.inf)
    assert certificate.n_min == 29
    assert certificate.mean_rate == 0.0
    assert certify(np.arange(29.0), 0.1, 0.05).k == 0


@pytest.mark.parametrize("name", ["alpha", "delta"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_levels_outside_the_unit_interval_are_refused(name: str, value: float) -> None:
    levels = {"alpha": 0.1, "delta": 0.05} | {name: value}
    with pytest.raises(ConfigError, match=name):
        certify(np.arange(10.0), levels["alpha"], levels["delta"])


@settings(deadline=None)
@given(scores=COLUMNS, position=st.integers(0, 29), value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_nan_and_infinite_scores_are_refused_with_their_row(scores: np.ndarray, position: int, value: float) -> None:
    scores[position] = value
    with pytest.raises(DataError) as refusal:
        sort_scores(scores)
    assert refusal.value.row == position + 1


@pytest.mark.parametrize("scores", [np.empty(0), np.zeros((3, 2))])
def test_no_scores_and_tables_of_scores_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(DataError):
        sort_scores(scores)


@settings(deadline=None)
@given(scores=COLUMNS, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_does_not_matter(scores: np.ndarray, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(scores)
    assert certify(sort_scores(shuffled), 0.2, 0.1) == certify(sort_scores(scores), 0.2, 0.1)


@settings(deadline=None)
@given(scores=hnp.arrays(np.float64, st.integers(30, 80), elements=st.integers(-50, 50)))
def test_a_monotone_transform_of_d_delegates_the_same_rows(scores: np.ndarray) -> None:
    before = certify(sort_scores(scores), 0.2, 0.1)
    after = certify(sort_scores(np.arctan(scores / 7)), 0.2, 0.1)
    assert ((scores > before.threshold) == (np.arctan(scores / 7) > after.threshold)).all()


@settings(deadline=None)
@given(scores=hnp.arrays(np.float64, st.integers(30, 80), elements=st.integers(0, 4)))
def test_with_ties_at_most_k_calibration_rows_lie_above_the_threshold(scores: np.ndarray) -> None:
    certificate = certify(sort_scores(scores), 0.2, 0.1)
    assert (scores > certificate.threshold).sum() <= certificate.k


@settings(deadline=None)
@given(
    scores=COLUMNS, low=st.floats(0.05, 0.9), high=st.floats(0.05, 0.9), guarantee=st.sampled_from(["exact", "next"])
)
def test_a_larger_budget_never_raises_the_threshold(
    scores: np.ndarray, low: float, high: float, guarantee: str
) -> None:
    low, high = sorted((low, high))
    horizon = 50 if guarantee == "next" else None
    thresholds = [
        certify(np.sort(scores), alpha, 0.1, guarantee=Guarantee(guarantee), horizon=horizon).threshold
        for alpha in (low, high)
    ]
    assert thresholds[0] >= thresholds[1]


@pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.SIMULTANEOUS, Guarantee.EXPECTED])
def test_only_next_has_a_horizon(guarantee: Guarantee) -> None:
    with pytest.raises(ConfigError, match="horizon"):
        certify(np.arange(100.0), 0.1, 0.05, guarantee=guarantee, horizon=10)
    for horizon in (None, 0, -1):
        with pytest.raises(ConfigError, match="horizon"):
            certify(np.arange(100.0), 0.1, 0.05, guarantee=Guarantee.NEXT, horizon=horizon)


def test_a_guarantee_without_a_rule_is_refused() -> None:
    with pytest.raises(AssertionError, match="later"):
        certify(np.arange(100.0), 0.1, 0.05, guarantee=cast("Guarantee", "later"))
