import json

import numpy as np
import pytest
from scipy.stats import beta

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.exceedance_alarm import ExceedanceAlarm, rate_bounds, tail_ranks


def test_there_are_eleven_ranks_from_one_hundredth_to_a_half() -> None:
    assert tail_ranks(1000).tolist() == [10, 20, 30, 50, 70, 100, 150, 200, 300, 400, 500]


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_few_scores_give_fewer_ranks_and_bounds_that_are_rates(n: int) -> None:
    ranks = tail_ranks(n)
    assert ranks.min() >= 1
    assert ranks.max() <= n
    assert (np.diff(ranks) > 0).all()
    bounds = rate_bounds(n, 0.05)
    assert ((bounds > 0) & (bounds < 1)).all()
    ExceedanceAlarm(np.arange(float(n))).update(0.0)


def test_bounds_are_beta_quantiles_shared_over_both_ends() -> None:
    ranks = tail_ranks(500)
    assert np.allclose(rate_bounds(500, 0.05), beta.isf(0.05 / 22, ranks, 501 - ranks), rtol=1e-9)


def test_all_bounds_hold_together_with_the_stated_probability() -> None:
    n, draws = 400, 4000
    uniforms = np.sort(np.random.default_rng(1).random((draws, n)), axis=1)
    ranks, bounds = tail_ranks(n), rate_bounds(n, 0.05)
    beyond = np.concatenate([1 - uniforms[:, n - ranks], uniforms[:, ranks - 1]], axis=1)
    failures = (beyond > np.tile(bounds, 2)).any(axis=1).mean()
    assert 0.02 < failures < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_scores_equal_to_an_order_statistic_do_not_exceed_it() -> None:
    alarm = ExceedanceAlarm(np.ones(500))
    assert not any(alarm.update(1.0) for _ in range(2000))


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_both_ends_are_watched(side: float) -> None:
    rng = np.random.default_rng(2)
    alarm = ExceedanceAlarm(rng.standard_normal(1000))
    assert any(alarm.update(d) for d in (rng.standard_normal(500) + side).tolist())


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(3)
    calibration, stream = rng.standard_normal(300), (rng.standard_normal(400) + 0.5).tolist()
    whole, first = ExceedanceAlarm(calibration), ExceedanceAlarm(calibration)
    for d in stream[:40]:
        assert first.update(d) == whole.update(d)
    second = ExceedanceAlarm.from_state(json.loads(json.dumps(first.state())), calibration)
    assert [second.update(d) for d in stream[40:]] == [whole.update(d) for d in stream[40:]]
    assert second.state() == whole.state()


def test_a_state_saved_beside_other_scores_is_refused() -> None:
    state = ExceedanceAlarm(np.arange(50.0)).state()
    with pytest.raises(DataError, match="other calibration scores"):
        ExceedanceAlarm.from_state(state, np.arange(51.0))


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        ExceedanceAlarm(np.arange(50.0)).update(float("nan"))
