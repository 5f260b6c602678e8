"""Pacing: the bound on calls for any sequence, drift, traffic as calibrated, and restarts."""

import math
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretBytes

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import certify, sort_scores
from ctd_guardrail.policy.pace import LEAST_RESERVE, Pace, PacedRule, Period
from ctd_guardrail.policy.rule import ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.ties import TieThreshold
from ctd_guardrail.text.conversation import Conversation, Message

ALPHA, DELTA = 0.1, 0.05
TEXT = Conversation((Message("user", "hello"),))
SCORES = sort_scores(np.random.default_rng(0).normal(size=1000))
RULE = ThresholdRule(certify(SCORES, ALPHA, DELTA).threshold)
HOUR = Period.HOUR.seconds


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rail:
    """The real rule in a loop of requests."""

    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.pace = Pace(ALPHA, HOUR, clock=self.clock)
        self.rule = PacedRule.of(RULE, SCORES, Period.HOUR, self.pace)

    def request(self, *scores: float) -> int:
        """Judge units of one request, and return the calls."""
        calls = sum(self.rule.delegates(d, TEXT) for d in scores)
        self.pace.count_request()
        return calls

    def calls(self, scores: np.ndarray, *, per_hour: float = 2000.0) -> np.ndarray:
        """Return the calls of each of many requests of one unit, evenly spaced in time."""
        counts = np.empty(scores.size)
        for i, d in enumerate(scores.tolist()):
            self.clock.now += HOUR / per_hour
            counts[i] = self.request(d)
        return counts


def largest_excess(calls: np.ndarray) -> float:
    """Return the largest of calls - alpha x requests over all spans of whole requests."""
    walk = np.concatenate([[0.0], np.cumsum(calls - ALPHA)])
    return float((walk - np.minimum.accumulate(walk)).max())


# Runs of requests with scores above all of the calibration, just above the threshold, or below, after silences.
_RUNS = st.lists(
    st.tuples(
        st.sampled_from(["flood", "edge", "low", "spread", "many units"]),
        st.integers(1, 400),
        st.floats(0.0, 3 * HOUR),
    ),
    min_size=1,
    max_size=12,
)


def run_scores(kind: str, count: int, rail: Rail, rng: np.random.Generator) -> list[tuple[float, ...]]:
    threshold = rail.rule.threshold
    match kind:
        case "flood":
            return [(50.0,)] * count
        case "edge":  # just above the threshold of this moment
            return [(math.nextafter(min(threshold, 60.0), math.inf),)] * count
        case "low":
            return [(-50.0,)] * count
        case "many units":
            return [(50.0, 50.0)] * count
        case _:
            return [(float(d),) for d in rng.normal(1.5, 2.0, size=count)]


@settings(deadline=None, max_examples=150)
@given(_RUNS, st.integers(0, 2**32 - 1))
def test_in_every_span_of_any_sequence_the_calls_are_at_most_alpha_per_request_and_the_reserve(
    runs: list[tuple[str, int, float]], seed: int
) -> None:
    rail, rng = Rail(), np.random.default_rng(seed)
    calls: list[int] = []
    reserve = 0.0
    for kind, count, pause in runs:
        rail.clock.now += pause
        for units in run_scores(kind, count, rail, rng):
            threshold = rail.rule.threshold
            assert threshold >= RULE.threshold
            calls.append(rail.request(*units))
            assert len(units) > 1 or calls[-1] == (units[0] > threshold)
            reserve = max(reserve, rail.pace.reserve)
            assert 0.0 <= rail.pace.lead <= rail.pace.reserve
    assert largest_excess(np.array(calls)) <= reserve + 1e-6
    assert reserve <= max(LEAST_RESERVE, ALPHA * len(calls)) + 1e-9


def test_a_flood_attains_the_bound() -> None:
    calls = Rail().calls(np.full(1000, 50.0), per_hour=10_000.0)
    assert calls.sum() == pytest.approx(ALPHA * 1000 + LEAST_RESERVE, abs=1.0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_after_drift_the_calls_return_to_alpha_within_the_reserve(shift: float) -> None:
    rng = np.random.default_rng(1)
    rail = Rail()
    rail.calls(rng.normal(size=10_000))
    assert rail.pace.reserve == pytest.approx(ALPHA * 2000)
    drifted = rail.calls(rng.normal(shift, 1.0, size=40_000))
    unpaced = (rng.normal(shift, 1.0, size=40_000) > RULE.threshold).mean()
    assert unpaced > 1.8 * ALPHA
    hours = drifted.reshape(20, 2000).mean(axis=1)
    assert hours[0] <= 2 * ALPHA
    # The first hours use the reserve; the others stay at alpha, and do not fall below it.
    assert np.abs(hours[4:] - ALPHA).max() < 0.1 * ALPHA
    assert abs(hours[4:].mean() - ALPHA) < 0.01 * ALPHA


def test_of_drifted_inputs_those_with_the_highest_scores_are_delegated() -> None:
    rng = np.random.default_rng(2)
    rail = Rail()
    rail.calls(rng.normal(1.0, 1.0, size=10_000))
    scores = rng.normal(1.0, 1.0, size=20_000)
    taken = scores[rail.calls(scores) == 1]
    assert taken.min() > RULE.threshold
    best = np.sort(scores)[-taken.size :]
    assert np.mean(taken) > 0.9 * np.mean(best)


def test_traffic_as_calibrated_is_delegated_as_without_a_pace() -> None:
    scores = np.random.default_rng(3).normal(size=50_000)
    certified = scores > RULE.threshold
    assert 0.95 * ALPHA < certified.mean() < ALPHA
    rail = Rail()
    # In the first hour the reserve is the least one.
    assert (rail.calls(scores[:2000]) != certified[:2000]).sum() < 10
    assert np.array_equal(rail.calls(scores[2000:]), certified[2000:])


def test_at_a_rate_of_alpha_itself_the_price_is_below_two_in_a_hundred_calls() -> None:
    scores = np.random.default_rng(4).normal(size=50_000)
    at_alpha = scores - np.quantile(scores, 1 - ALPHA) + RULE.threshold
    lost = 1 - Rail().calls(at_alpha).sum() / (at_alpha > RULE.threshold).sum()
    assert 0.0 <= lost < 0.02


def test_a_quiet_time_neither_forgives_a_lead_nor_silences_the_expert() -> None:
    rng = np.random.default_rng(5)
    rail = Rail()
    rail.calls(rng.normal(size=8000))
    rail.calls(rng.normal(2.0, 1.0, size=8000))
    lead, reserve = rail.pace.lead, rail.pace.reserve
    assert lead > reserve / 2 > LEAST_RESERVE
    rail.clock.now += 10 * HOUR
    assert (rail.pace.lead, rail.pace.reserve) == (lead, reserve)
    night = rail.calls(rng.normal(size=200), per_hour=20.0)
    assert 0.0 < night.mean() < ALPHA
    # Traffic as calibrated pays the lead back, and the reserve follows it down.
    rail.calls(rng.normal(size=20_000), per_hour=20.0)
    assert rail.pace.share == 1.0
    assert rail.pace.reserve < reserve / 4


def test_calls_that_no_threshold_decides_about_use_the_reserve_and_never_more() -> None:
    rail = Rail()
    rail.pace.count_request(15)
    assert rail.pace.lead == pytest.approx(14.9)
    assert rail.rule.threshold > RULE.threshold
    for _ in range(100):
        rail.pace.count_request(2)
    assert rail.pace.lead == LEAST_RESERVE
    assert not rail.rule.delegates(1e9, TEXT)
    for _ in range(10):
        rail.pace.count_request()
    assert rail.rule.delegates(1e9, TEXT)
    # A limit on the calls of its request withholds this one.
    lead = rail.pace.lead
    rail.pace.count_request(-1)
    assert rail.pace.lead == pytest.approx(lead - 1 - ALPHA)


def test_a_new_pace_begins_at_the_certified_threshold() -> None:
    assert Rail().rule.threshold == RULE.threshold
    assert PacedRule.of(ThresholdRule(math.inf), SCORES, Period.DAY, Pace(ALPHA, 1.0)).threshold == math.inf


def test_inputs_that_tie_with_the_threshold_are_drawn_by_the_certified_rule() -> None:
    key = SecretBytes(b"a secret of the operator")
    always, never = (TieBreakingRule(TieThreshold(0.0, v), key) for v in (-1.0, 2.0))
    scores = np.repeat([-1.0, 0.0, 1.0], 50)
    for rule, expected in ((always, True), (never, False)):
        paced = PacedRule.of(rule, scores, Period.HOUR, Pace(ALPHA, HOUR, clock=Clock()))
        assert paced.delegates(0.0, TEXT) is expected
        paced.pace.count_request(12)
        assert not paced.delegates(0.0, TEXT)


def test_scores_of_inputs_that_always_go_to_the_expert_do_not_raise_the_threshold() -> None:
    pace = Pace(ALPHA, HOUR, clock=Clock())
    rule = PacedRule.of(RULE, np.append(SCORES, [math.inf] * 50), Period.HOUR, pace)
    pace.count_request(15)
    assert rule.threshold < SCORES[-1]


def test_paced_rules_are_equal_where_they_pace_the_same_rule() -> None:
    paced = [PacedRule.of(RULE, SCORES, Period.HOUR, Pace(ALPHA, HOUR)) for _ in range(2)]
    assert paced[0] == paced[1]
    assert paced[0] != PacedRule.of(RULE, SCORES, Period.DAY, paced[0].pace)
    assert paced[0] != PacedRule.of(ThresholdRule(0.0), SCORES, Period.HOUR, paced[0].pace)


def test_threads_together_make_no_call_beyond_the_bound() -> None:
    rail = Rail()
    made: list[int] = []

    def flood() -> None:
        made.append(sum(rail.request(50.0) for _ in range(2000)))

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) == pytest.approx(ALPHA * 16_000 + LEAST_RESERVE, abs=1.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_budget_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha"):
        Pace(alpha, HOUR)
