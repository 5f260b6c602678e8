import math

import numpy as np
import pytest

from ctd_guardrail.monitors.e_detector import RATIOS, advance, factors, idle, started


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3, 0.6, 0.99])
def test_no_bet_gains_on_average_at_any_rate_up_to_alpha(alpha: float) -> None:
    bets = factors(alpha)
    for rate in (0.0, alpha / 2, alpha):
        mean = rate * bets.hit + (1 - rate) * bets.miss
        assert (mean <= 1 + 1e-12).all()
    assert np.allclose(alpha * bets.hit + (1 - alpha) * bets.miss, 1.0)


def test_alternatives_are_the_stated_multiples_where_these_are_rates() -> None:
    assert np.allclose(factors(0.1).hit, RATIOS)
    assert (factors(0.5).hit * 0.5 < 1.0).all()


def test_all_capital_is_accounted_for() -> None:
    assert idle(0) == 1.0
    assert math.fsum(started(t) for t in range(1, 5001)) + idle(5000) == pytest.approx(1.0, abs=1e-12)
    assert all(started(t) > 0 for t in (1, 2, 10**6, 10**9))


def test_the_recursion_is_the_sum_over_all_starting_times() -> None:
    events = np.random.default_rng(1).random(40) < 0.3
    bets = factors(0.1)
    capital = np.zeros(len(RATIOS))
    for t, event in enumerate(events, start=1):
        capital = advance(capital, event, bets, t)
    ratios = np.where(events[:, None], bets.hit, bets.miss)
    by_start = [started(s) * ratios[s - 1 :].prod(axis=0) for s in range(1, 41)]
    assert np.allclose(capital, np.sum(by_start, axis=0), rtol=1e-12)
