import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.threshold_tracker import STEP, ThresholdTracker
from ctd_guardrail.monitors.token_bucket import exact_share
from ctd_guardrail.policy.budget import certify, sort_scores

shares = st.decimals(min_value="0.01", max_value="0.99", places=2).map(float)
small = st.integers(-8, 8).map(float)


@given(shares, st.lists(small, min_size=1, max_size=12), st.data())
def test_in_any_window_of_any_sequence_the_excess_is_bounded(
    alpha: float, calibration: list[float], data: st.DataObject
) -> None:
    n = len(calibration)
    k = data.draw(st.integers(-1, n - 1))
    stream = data.draw(st.lists(small, max_size=200))
    restart = data.draw(st.integers(0, 200))
    tracker = ThresholdTracker(np.array(calibration), alpha, k)
    bound = Fraction(max(k, 0), n) * 200 + 1 - exact_share("alpha", alpha)
    excess = lowest = Fraction(0)
    for step, d in enumerate(stream):
        if step == restart:
            tracker = ThresholdTracker.from_state(json.loads(json.dumps(tracker.state())), np.array(calibration))
        delegated = d > tracker.threshold
        tracker.update(delegated=delegated)
        excess += int(delegated) - exact_share("alpha", alpha)
        lowest = min(lowest, excess)
        assert excess - lowest <= bound


def test_the_bound_is_attained_by_inputs_that_are_always_delegated() -> None:
    scores = np.arange(1000.0)
    k = certify(scores, 0.1, 0.05).k
    tracker = ThresholdTracker(scores, 0.1, k)
    calls = 0
    excess = []
    for t in range(1, 3001):
        delegated = tracker.threshold < np.inf
        tracker.update(delegated=delegated)
        calls += delegated
        excess.append(calls - 0.1 * t)
    bound = k / 1000 / STEP + 1 - 0.1
    assert bound - 1 < max(excess) <= bound


def test_it_starts_at_the_certified_threshold_and_never_falls_below_it() -> None:
    scores = np.random.default_rng(1).standard_normal(500)
    certificate = certify(sort_scores(scores), 0.2, 0.05)
    tracker = ThresholdTracker(scores, 0.2, certificate.k)
    assert tracker.threshold == certificate.threshold
    rng = np.random.default_rng(2)
    for d in rng.standard_normal(2000).tolist():
        assert tracker.update(delegated=d > tracker.threshold) >= certificate.threshold


def test_the_threshold_is_the_order_statistic_of_the_raised_rank() -> None:
    tracker = ThresholdTracker(np.arange(1.0, 1001.0), 0.1, 84)
    tracker.update(delegated=True)
    # u = .916 + .005 * .9 = .9205: rank ceil(920.5).
    assert tracker.threshold == 921.0
    for _ in range(9):
        tracker.update(delegated=False)
    assert tracker.debt == 0.0
    assert tracker.threshold == 916.0


def test_it_hardly_moves_while_traffic_is_as_calibrated() -> None:
    rng = np.random.default_rng(3)
    scores = rng.standard_normal(1000)
    certificate = certify(sort_scores(scores), 0.1, 0.05)
    tracker = ThresholdTracker(scores, 0.1, certificate.k)
    stream = rng.standard_normal(20_000).tolist()
    calls = 0
    for d in stream:
        delegated = d > tracker.threshold
        calls += delegated
        tracker.update(delegated=delegated)
    fixed = sum(d > certificate.threshold for d in stream)
    assert 0.8 * fixed < calls <= fixed


def test_without_a_certificate_nothing_is_delegated() -> None:
    assert ThresholdTracker(np.arange(5.0), 0.1, -1).threshold == math.inf


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="k"):
        ThresholdTracker(np.arange(5.0), 0.1, 5)
    with pytest.raises(ConfigError, match="alpha"):
        ThresholdTracker(np.arange(5.0), 0.0, 1)
    with pytest.raises(DataError, match="row 1"):
        ThresholdTracker(np.array([float("nan")]), 0.1, 0)


def test_a_state_saved_beside_other_scores_is_refused() -> None:
    state = ThresholdTracker(np.arange(5.0), 0.1, 1).state()
    with pytest.raises(DataError, match="other calibration scores"):
        ThresholdTracker.from_state(state, np.arange(6.0))


def test_with_no_score_above_it_the_largest_is_the_threshold_until_something_exceeds_it() -> None:
    tracker = ThresholdTracker(np.arange(50.0), 0.1, 0)
    assert tracker.threshold == 49.0
    assert tracker.update(delegated=True) == math.inf
    assert [tracker.update(delegated=False) for _ in range(9)][-2:] == [math.inf, 49.0]
