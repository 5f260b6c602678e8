"""The audit floor against its promises: unbiased, and never outside its interval more often than delta."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
from scipy.special import xlog1py

from ctd_guardrail.monitors.audit_floor import AuditFloor

DELTA = 0.05
SIZES = [(200, 1_000), pytest.param(500, 20_000, marks=pytest.mark.slow)]

# Probability of a miss, given the step, the misses so far and those found so far.
TRAFFIC: dict[str, Callable[[int, np.ndarray, np.ndarray], np.ndarray]] = {
    "constant": lambda t, missed, found: np.full(missed.shape, 0.05),
    "attack after a while": lambda t, missed, found: np.full(missed.shape, 0.3 if t > 500 else 0.01),
    "bold while undetected": lambda t, missed, found: np.where(found < 0.05 * missed, 0.4, 0.01),
    "always": lambda t, missed, found: np.ones(missed.shape),
}


def counts(traffic: str, streams: int, steps: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the misses and the misses found after every step, both of shape [steps, streams]."""
    rng = np.random.default_rng([6, steps])
    missed, found = np.zeros(streams, dtype=int), np.zeros(streams, dtype=int)
    history = np.zeros((2, steps, streams), dtype=int)
    for t in range(steps):
        miss = rng.random(streams) < TRAFFIC[traffic](t, missed, found)
        missed += miss
        found += miss & (rng.random(streams) < share)
        history[:, t] = missed, found
    return history[0], history[1]


def refuted(missed: np.ndarray, found: np.ndarray, share: float, z: np.ndarray) -> np.ndarray:
    """Return whether the bets refute the true number of misses, as the interval's ends are found."""
    out = np.zeros(missed.shape, dtype=bool)
    # Nothing changes at a step without a miss.
    moved = np.diff(missed, axis=0, prepend=0) > 0
    for t, at in enumerate(moved):
        log_bets = xlog1py(found[t, at, None], z) - missed[t, at, None] * np.log1p(share * z)
        out[t, at] = np.logaddexp.reduce(log_bets, axis=1) - np.log(z.size) >= np.log(2 / DELTA)
    return out


def test_the_simulation_is_the_monitor() -> None:
    missed, found = counts("bold while undetected", 20, 300, 0.1)
    rises, falls = 2.0 ** np.arange(-8, 4), -(2.0 ** np.arange(-8, 1))
    for t in (0, 50, 299):
        for true, seen in zip(missed[t], found[t], strict=True):
            floor = AuditFloor(0.1, delta=DELTA)
            for step in range(t + 1):
                floor.update(missed=True if step < seen else None)
            low, high = floor.interval()
            inside = low <= true / (t + 1) <= high
            outside = any(refuted(np.array([[true]]), np.array([[seen]]), 0.1, z)[0, 0] for z in (rises, falls))
            assert inside != outside


@pytest.mark.parametrize(("streams", "steps"), SIZES)
@pytest.mark.parametrize("share", [0.02, 0.2])
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_the_interval_holds_the_truth_at_all_steps_together(
    traffic: str, share: float, streams: int, steps: int
) -> None:
    missed, found = counts(traffic, streams, steps, share)
    wrong = refuted(missed, found, share, 2.0 ** np.arange(-8, 4)) | refuted(
        missed, found, share, -(2.0 ** np.arange(-8, 1))
    )
    ever = wrong.any(axis=0).mean()
    print(f"audit floor, {traffic}, share {share}: wrong at any step in {ever:.3f}")  # noqa: T201
    assert ever <= DELTA + 3 * sqrt(DELTA * (1 - DELTA) / streams)


@pytest.mark.parametrize("traffic", TRAFFIC)
def test_the_estimate_is_unbiased_whatever_the_traffic(traffic: str) -> None:
    share, steps = 0.05, 400
    missed, found = counts(traffic, 20_000, steps, share)
    error = found[-1] / (share * steps) - missed[-1] / steps
    assert abs(error.mean()) <= 4 * error.std() / sqrt(error.size)


def test_a_hash_of_the_input_in_place_of_a_coin_audits_a_repeated_attack_always_or_never() -> None:
    """The interval is void then: nine streams of ten never show the attack."""
    floor = AuditFloor(0.1, delta=DELTA)
    for _ in range(2_000):
        floor.update(missed=None)
    assert floor.interval()[1] < 1.0, "the truth is that every input was missed"
