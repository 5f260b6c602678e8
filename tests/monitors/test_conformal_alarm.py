import json

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.conformal_alarm import JUMP, TAILS, ConformalAlarm, jump, tail_events
from ctd_guardrail.monitors.e_detector import started


def test_the_jumper_is_the_sum_of_simple_jumpers_begun_at_every_step() -> None:
    p_values = np.random.default_rng(1).random(30)
    capital = np.zeros(3)
    for t, p in enumerate(p_values, start=1):
        capital = jump(capital, p, t)

    def simple_jumper(p_values: np.ndarray) -> float:
        parts = dict.fromkeys((-1, 0, 1), 1 / 3)
        for p in p_values:
            whole = sum(parts.values())
            parts = {e: ((1 - JUMP) * part + JUMP / 3 * whole) * (1 + e * (p - 0.5)) for e, part in parts.items()}
        return sum(parts.values())

    expected = sum(started(s) * simple_jumper(p_values[s - 1 :]) for s in range(1, 31))
    assert capital.sum() == pytest.approx(expected, rel=1e-12)


def test_the_jumper_gains_nothing_on_average_from_uniform_p_values() -> None:
    capital = np.array([0.2, 0.5, 0.1])
    midpoints = (np.arange(1000) + 0.5) / 1000
    after = jump(np.broadcast_to(capital, (1000, 3)), midpoints, 1)
    assert after.sum(axis=-1).mean() == pytest.approx(capital.sum() + started(1), rel=1e-12)


def test_tails_are_taken_from_both_ends() -> None:
    upper, lower = tail_events(0.04)
    assert (upper == (TAILS > 0.04)).all()
    assert not lower.any()
    assert tail_events(np.full((7, 3), 0.99)).shape == (2, 7, 3, 11)
    assert tail_events(0.985)[1].tolist() == (TAILS > 0.016).tolist()


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(2)
    calibration, stream = rng.standard_normal(200), (rng.standard_normal(300) + 0.2).tolist()
    whole, first = ConformalAlarm(calibration, seed=5), ConformalAlarm(calibration, seed=5)
    for d in stream[:40]:
        assert first.update(d) == whole.update(d)
    second = ConformalAlarm.from_state(json.loads(json.dumps(first.state())), calibration)
    assert [second.update(d) for d in stream[40:]] == [whole.update(d) for d in stream[40:]]
    assert second.state() == whole.state()


def test_scores_that_are_not_finite_are_refused_even_after_the_alarm() -> None:
    alarm = ConformalAlarm(np.zeros(100), seed=0)
    while not alarm.update(1.0):
        pass
    with pytest.raises(DataError, match="finite"):
        alarm.update(float("nan"))


def test_a_level_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta"):
        ConformalAlarm(np.zeros(3), delta=1.0, seed=0)


def test_a_damaged_state_is_refused() -> None:
    scores = np.arange(50.0)
    state = ConformalAlarm(scores, seed=0).state()
    with pytest.raises(DataError, match="'p_values'"):
        ConformalAlarm.from_state(state | {"p_values": 3}, scores)
    with pytest.raises(DataError, match="'tails'"):
        ConformalAlarm.from_state(state | {"tails": [0.0]}, scores)
