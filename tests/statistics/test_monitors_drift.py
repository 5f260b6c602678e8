"""Both drift alarms against their promises: false alarms on exchangeable scores, and delays after a change."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest

from ctd_guardrail.monitors.conformal_alarm import TAILS as TAIL_SHARES
from ctd_guardrail.monitors.conformal_alarm import ConformalAlarm, jump, tail_events
from ctd_guardrail.monitors.e_detector import RATIOS, advance, factors, idle
from ctd_guardrail.monitors.exceedance_alarm import ExceedanceAlarm, rate_bounds, tail_ranks
from ctd_guardrail.monitors.score_drift import ScoreDriftAlarm

DELTA = 0.05


def conformal_alarms(calibration: np.ndarray, stream: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Return the steps of the conformal alarms, 0 where there is none.

    Args:
        calibration: Continuous scores, shape [streams, n].
        stream: Scores, shape [steps, streams].
        uniforms: What breaks ties, shape [steps, streams].
    """
    streams, n = calibration.shape
    calibration = np.sort(calibration, axis=1)
    gaps = np.stack([np.searchsorted(c, d) for c, d in zip(calibration, stream.T, strict=True)], axis=1)
    counts = np.zeros((streams, n + 1), dtype=np.int32)
    every, cells = np.arange(streams), np.arange(n + 1)
    jumper = np.zeros((streams, 3))
    tails = np.zeros((2, streams, TAIL_SHARES.size, len(RATIOS)))
    bets = factors(TAIL_SHARES)
    at = np.zeros(streams, dtype=int)
    for t, (gap, u) in enumerate(zip(gaps, uniforms, strict=True), start=1):
        above = (n - gap) + np.where(cells > gap[:, None], counts, 0).sum(axis=1)
        p = (above + u * (counts[every, gap] + 1)) / (n + t)
        counts[every, gap] += 1
        jumper = jump(jumper, p, t)
        tails = advance(tails, tail_events(p), bets, t)
        evidence = 0.5 * jumper.sum(axis=-1) + 0.5 * tails.mean(axis=(0, 2, 3)) + idle(t)
        at[(at == 0) & (evidence * DELTA >= 1)] = t
    return at


def exceedance_alarms(calibration: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """Return the steps of the exceedance alarms, 0 where there is none; shapes as above."""
    streams, n = calibration.shape
    calibration = np.sort(calibration, axis=1)
    ranks = tail_ranks(n)
    upper, lower = calibration[:, n - ranks], calibration[:, ranks - 1]
    bets = factors(rate_bounds(n, DELTA / 2))
    capital = np.zeros((2, streams, ranks.size, len(RATIOS)))
    at = np.zeros(streams, dtype=int)
    for t, d in enumerate(stream, start=1):
        events = np.array([d[:, None] > upper, d[:, None] < lower])
        capital = advance(capital, events, bets, t)
        evidence = capital.mean(axis=(0, 2, 3)) + idle(t)
        at[(at == 0) & (evidence * DELTA >= 2)] = t
    return at


def within(share: float, runs: int) -> bool:
    return share <= DELTA + 3 * sqrt(DELTA * (1 - DELTA) / runs)


def test_the_simulation_is_the_monitor() -> None:
    rng = np.random.default_rng(1)
    calibration = rng.standard_normal((5, 200))
    stream = 2.0 * rng.standard_normal((400, 5))
    conformal, exceedance, uniforms = [], [], []
    for seed in range(5):
        first = ConformalAlarm(calibration[seed], delta=DELTA, seed=seed)
        second = ExceedanceAlarm(calibration[seed], delta=DELTA)
        for d in stream[:, seed].tolist():
            first.update(d)
            second.update(d)
        conformal.append(first.alarmed_at or 0)
        exceedance.append(second.alarmed_at or 0)
        uniforms.append(np.random.Generator(np.random.PCG64([seed, 1])).random(400))
    assert conformal_alarms(calibration, stream, np.array(uniforms).T).tolist() == conformal
    assert exceedance_alarms(calibration, stream).tolist() == exceedance
    assert any(conformal)
    assert any(exceedance)


@pytest.mark.parametrize(("streams", "steps"), [(100, 2_000), pytest.param(500, 20_000, marks=pytest.mark.slow)])
def test_false_alarms_within_delta_on_exchangeable_scores(streams: int, steps: int) -> None:
    rng = np.random.default_rng([2, steps])
    calibration = rng.standard_normal((streams, 500))
    stream = rng.standard_normal((steps, streams))
    conformal = (conformal_alarms(calibration, stream, rng.random((steps, streams))) > 0).mean()
    exceedance = (exceedance_alarms(calibration, stream) > 0).mean()
    print(f"drift, {steps} steps of {streams} streams: conformal {conformal:.3f}, exceedance {exceedance:.3f}")  # noqa: T201
    assert within(conformal, streams)
    assert within(exceedance, streams)


@pytest.mark.parametrize("streams", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_false_alarms_within_delta_where_most_scores_are_tied(streams: int) -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for seed in range(streams):
        alarm = ScoreDriftAlarm(np.round(rng.standard_normal(300), 1), delta=DELTA, seed=seed)
        alarms += any(alarm.update(d) for d in np.round(rng.standard_normal(500), 1).tolist())
    assert within(alarms / streams, streams)


def test_the_mean_p_value_of_a_fixed_reference_is_no_monitor() -> None:
    """Ranks among the calibration scores alone repeat the error of that sample at every step."""
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(40):
        calibration = np.sort(rng.standard_normal(200))
        p = 1 - (np.searchsorted(calibration, rng.standard_normal(20_000)) + rng.random(20_000)) / 201
        log_capital = np.log1p(0.1 * (p - 0.5)).cumsum(), np.log1p(-0.1 * (p - 0.5)).cumsum()
        alarms += np.logaddexp(*log_capital).max() - np.log(2) >= np.log(1 / DELTA)
    assert alarms / 40 > 0.2


CHANGES: dict[str, tuple[float, Callable[[np.random.Generator, int], np.ndarray]]] = {
    "half a sigma up": (53, lambda rng, steps: rng.standard_normal(steps) + 0.5),
    "half a sigma down": (53, lambda rng, steps: rng.standard_normal(steps) - 0.5),
    "scale times 1.3": (400, lambda rng, steps: 1.3 * rng.standard_normal(steps)),
    "5% flood above": (400, lambda rng, steps: flood(rng, steps, 3.0)),
    "5% flood below": (400, lambda rng, steps: flood(rng, steps, -3.0)),
}


def flood(rng: np.random.Generator, steps: int, centre: float) -> np.ndarray:
    scores = rng.standard_normal(steps)
    return np.where(rng.random(steps) < 0.05, centre + 0.1 * rng.standard_normal(steps), scores)


@pytest.mark.parametrize("streams", [25, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_median_delay_after_a_change(change: str, streams: int) -> None:
    specified, draw = CHANGES[change]
    rng = np.random.default_rng([5, streams])
    steps = int(3 * specified)
    delays = []
    for seed in range(streams):
        alarm = ScoreDriftAlarm(rng.standard_normal(1_000), delta=DELTA, seed=seed)
        delays.append(next((t for t, d in enumerate(draw(rng, steps).tolist(), start=1) if alarm.update(d)), 10**9))
    print(f"{change}: median delay {np.median(delays)}, found {np.mean(np.array(delays) < 10**9):.2f}")  # noqa: T201
    assert np.median(delays) <= 1.3 * specified
