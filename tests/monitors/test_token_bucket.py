import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.token_bucket import TokenBucket, bucket_capacity, exact_share

shares = st.decimals(min_value="0.001", max_value="0.999", places=3).map(float)


@given(shares, st.integers(1, 30), st.lists(st.integers(0, 3), max_size=150), st.integers(0, 150))
def test_in_any_window_of_any_traffic_calls_stay_within_alpha_t_plus_b(
    alpha: float, capacity: int, wanted: list[int], restart: int
) -> None:
    """Each request wants so many calls: the first by delegation, the others as retries. A restart gains nothing."""
    bucket = TokenBucket(alpha, capacity)
    balance = [Fraction(0)]
    for step, calls in enumerate(wanted):
        if step == restart:
            bucket = TokenBucket.from_state(json.loads(json.dumps(bucket.state())))
        made = int(bucket.update(delegated=calls > 0))
        made += sum(bucket.take() for _ in range(calls - 1))
        balance.append(balance[-1] + made - exact_share("alpha", alpha))
    lowest = Fraction(0)
    for value in balance:
        lowest = min(lowest, value)
        assert value - lowest <= capacity


def test_the_bound_is_attained() -> None:
    bucket = TokenBucket(0.1, 20)
    calls = sum(bucket.update(delegated=True) for _ in range(10_000))
    # alpha T + b is 1020; the refill of the first request finds the bucket full.
    assert calls == 1019
    assert bucket.level == pytest.approx(0.9)


def test_sums_of_a_tenth_do_not_round() -> None:
    bucket = TokenBucket(0.1, 1)
    assert [step for step in range(1000) if bucket.update(delegated=True)] == list(range(0, 1000, 10))


@pytest.mark.parametrize(("alpha", "rate", "epsilon"), [(0.1, 0.085, 1e-3), (0.5, 0.2, 1e-4), (0.05, 0.049, 0.01)])
def test_capacity_comes_from_the_root_of_the_moment_equation(alpha: float, rate: float, epsilon: float) -> None:
    b = bucket_capacity(alpha, rate, epsilon)

    def moment(theta: float) -> float:
        return rate * math.exp(theta * (1 - alpha)) + (1 - rate) * math.exp(-theta * alpha)

    # ln(1 / epsilon) / b <= theta < ln(1 / epsilon) / (b - 1), where the moment crosses 1 from below.
    assert moment(math.log(1 / epsilon) / b) <= 1 + 1e-12
    assert moment(math.log(1 / epsilon) / (b - 1)) > 1


def test_at_alpha_a_tenth_and_a_thousand_rows_it_is_twenty() -> None:
    assert bucket_capacity(0.1, 85 / 1001) == 20


def test_a_rate_far_below_alpha_needs_next_to_nothing() -> None:
    assert bucket_capacity(0.5, 1e-9) == 1


def test_hardly_any_call_is_denied_at_the_expected_rate() -> None:
    bucket = TokenBucket(0.1, bucket_capacity(0.1, 85 / 1001))
    wanted = np.random.default_rng(1).random(200_000) < 85 / 1001
    made = sum(bucket.update(delegated=w) for w in wanted.tolist())
    assert 0 <= 1 - made / wanted.sum() < 1e-3


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="rate"):
        bucket_capacity(0.1, 0.1)
    with pytest.raises(ConfigError, match="epsilon"):
        bucket_capacity(0.1, 0.05, 0.0)
    with pytest.raises(ConfigError, match="capacity"):
        TokenBucket(0.1, 0)
    with pytest.raises(ConfigError, match="alpha"):
        TokenBucket(1.0, 5)


def test_a_damaged_state_cannot_raise_the_level_above_the_cap() -> None:
    state = TokenBucket(0.1, 5).state()
    assert TokenBucket.from_state(state | {"level": 10**6}).level == 5.0
    with pytest.raises(DataError, match="'level'"):
        TokenBucket.from_state(state | {"level": -1})
