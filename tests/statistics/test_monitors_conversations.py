"""Alarms on conversations, whose turns depend on each other: false alarms, delays, and what single turns would give."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.monitors.e_detector import compound, idle
from ctd_guardrail.monitors.rate_alarm import RateAlarm, rate_bets
from ctd_guardrail.monitors.rate_limit import rate_bound, reference_scores
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from tests.support.traffic import Conversations, Turns

ALPHA, DELTA = 0.1, 0.05
LAWS = {
    "single turns": Conversations(mean=1.0, longest=1),
    "four turns": Conversations(correlation=0.5),
    "four turns, alike, rising": Conversations(correlation=0.8, drift=0.1),
    "four turns, alike, falling": Conversations(correlation=0.8, drift=-0.1),
    "ten turns": Conversations(mean=10.0, longest=50, correlation=0.5),
    "ten turns, alike, rising": Conversations(mean=10.0, longest=50, correlation=0.8, drift=0.1),
}
Counts = tuple[np.ndarray, np.ndarray]


def first_alarms(
    requests: np.ndarray,
    calls: np.ndarray,
    limit: float,
    max_turns: int,
    delta: float = DELTA,
    unit: BudgetUnit = BudgetUnit.TURN,
) -> np.ndarray:
    """Return the conversation of each stream's alarm, 0 where there is none.

    Args:
        requests: T, one stream a column, shape [conversations, streams].
        calls: D, of the same shape.
        limit: The rate that is tested.
        max_turns: Largest T.
        delta: Probability of a false alarm.
        unit: What the limit is a share or a number of.
    """
    bets = rate_bets(limit, unit=unit, max_turns=max_turns)
    capital = np.zeros((requests.shape[1], bets.size))
    at = np.zeros(requests.shape[1], dtype=int)
    for t, (units, hits) in enumerate(zip(requests, calls, strict=True), start=1):
        capital = compound(capital, 1.0 + (hits - limit * units)[:, None] * bets, t)
        evidence = capital.mean(axis=-1) + idle(t)
        at[(at == 0) & (evidence * delta >= 1)] = t
        capital = np.minimum(capital, 1e100)
    return at


def draw(law: Conversations, rng: np.random.Generator, conversations: int, streams: int, rate: float) -> Counts:
    """Return T and D of streams whose turns are delegated at a rate."""
    turns = law.draw(rng, conversations * streams)
    above = turns.conversation[turns.d > law.threshold(rate)]
    calls = np.bincount(above, minlength=conversations * streams)
    return turns.lengths.reshape(conversations, streams), calls.reshape(conversations, streams)


def scores_of(turns: Turns) -> TurnScores:
    return TurnScores.of(turns.d, turns.conversation)


def is_within(times: int, draws: int, delta: float = DELTA) -> bool:
    return bool(times <= binom.ppf(1 - 1e-4, draws, delta))


def median(at: np.ndarray) -> float:
    return float(np.median(np.where(at > 0, at, 10**9)))


def test_the_simulation_is_the_monitor() -> None:
    requests, calls = draw(LAWS["four turns"], np.random.default_rng(1), 400, 10, 0.16)
    expected = []
    for units, hits in zip(requests.T.tolist(), calls.T.tolist(), strict=True):
        alarm = RateAlarm(ALPHA, delta=DELTA, max_turns=20)
        for each in zip(hits, units, strict=True):
            alarm.update(*each)
        expected.append(alarm.alarmed_at or 0)
    assert first_alarms(requests, calls, ALPHA, 20).tolist() == expected
    assert any(expected)


@pytest.mark.parametrize("name", LAWS)
def test_false_rate_alarms_within_delta(name: str, draws: int) -> None:
    law = LAWS[name]
    at = first_alarms(*draw(law, np.random.default_rng(2), 1_000, draws, ALPHA), ALPHA, law.longest)
    print(f"{name}: {(at > 0).mean():.3f} false rate alarms in 1,000 conversations of {draws} streams")  # noqa: T201
    assert is_within(int((at > 0).sum()), draws)


@pytest.mark.parametrize("name", ["four turns", "four turns, alike, rising", "ten turns", "ten turns, alike, rising"])
def test_turns_as_if_they_were_independent_alarm_by_chance(name: str, draws: int) -> None:
    law = LAWS[name]
    streams = []
    for stream in range(draws):
        turns = law.draw(np.random.default_rng([3, stream]), 500)
        streams.append((turns.d > law.threshold(ALPHA))[:1_500].astype(int))
    calls = np.array(streams).T
    at = first_alarms(np.ones_like(calls), calls, ALPHA, 1)
    print(f"{name}, each turn by itself: {(at > 0).mean():.3f} false rate alarms")  # noqa: T201
    assert (at > 0).mean() > 0.25


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_false_alarms_within_delta_where_the_budget_is_per_conversation(drift: float, draws: int) -> None:
    law = Conversations(correlation=0.8, drift=drift)
    threshold = law.threshold(0.3)
    turns = law.draw(np.random.default_rng(4), 500 * draws)
    calls = np.bincount(turns.conversation[turns.d > threshold], minlength=500 * draws).reshape(500, draws)
    limit = law.calls(threshold)
    assert limit > 1.0
    at = first_alarms(np.ones_like(calls), calls, limit, 20, unit=BudgetUnit.CONVERSATION)
    assert is_within(int((at > 0).sum()), draws)
    late = first_alarms(np.ones_like(calls), calls, limit / 1.5, 20, unit=BudgetUnit.CONVERSATION)
    print(f"per conversation, drift {drift}: median delay {median(late)} conversations")  # noqa: T201
    assert median(late) <= 300


# Median delay in requests after a change to 1.5 alpha, from the start, as the docs state it.
DELAYS = {
    "single turns": 262,
    "four turns": 490,
    "four turns, alike, rising": 1_050,
    "ten turns": 1_060,
    "ten turns, alike, rising": 2_890,
}


@pytest.mark.parametrize("name", DELAYS)
def test_median_delay_at_one_and_a_half_times_the_budget(name: str, draws: int) -> None:
    law = LAWS[name]
    requests, calls = draw(law, np.random.default_rng(5), 1_500, draws, 1.5 * ALPHA)
    requests_to_alarm = median(first_alarms(requests, calls, ALPHA, law.longest)) * float(requests.mean())
    print(f"{name}: median delay {requests_to_alarm:.0f} requests")  # noqa: T201
    assert requests_to_alarm <= 1.3 * DELAYS[name]


@pytest.mark.parametrize("quiet", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DELAYS)
def test_median_delay_after_a_quiet_stretch(name: str, quiet: int, draws: int) -> None:
    law = LAWS[name]
    rng = np.random.default_rng(6)
    stretch = round(quiet / law.mean_length)
    before = draw(law, rng, stretch, draws, ALPHA)
    after = draw(law, rng, 2_500, draws, 1.5 * ALPHA)
    requests, calls = (np.concatenate(each) for each in zip(before, after, strict=True))
    at = first_alarms(requests, calls, ALPHA, law.longest)
    delay = median(at[(at == 0) | (at > stretch)] - stretch) * law.mean_length
    print(f"{name}: median delay {delay:.0f} requests after {quiet} quiet ones")  # noqa: T201
    assert delay <= 6 * DELAYS[name]


@pytest.mark.parametrize(("longest", "factor"), [(5, 1.3), (20, 1.3), (50, 2.5)])
def test_room_for_longer_conversations_costs_single_turns_little(longest: int, factor: float, draws: int) -> None:
    requests, calls = draw(LAWS["single turns"], np.random.default_rng(7), 2_000, draws, 1.5 * ALPHA)
    delay = median(first_alarms(requests, calls, ALPHA, longest))
    print(f"single turns with max_turns {longest}: median delay {delay:.0f} requests")  # noqa: T201
    assert delay <= factor * DELAYS["single turns"]


@pytest.mark.parametrize("unit", BudgetUnit)
@pytest.mark.parametrize("name", ["single turns", "four turns, alike, rising"])
def test_the_bound_of_an_expected_budget_holds(name: str, unit: BudgetUnit, draws: int) -> None:
    """The rate itself exceeds alpha in about half of the calibrations, the bound in at most delta."""
    law = LAWS[name]
    alpha = ALPHA if unit is BudgetUnit.TURN else ALPHA * law.mean_length
    if unit is BudgetUnit.CONVERSATION and law.longest == 1:
        pytest.skip("the same as calls per turn")
    above_alpha = above_bound = 0
    bounds = []
    draws = -(-draws // 4)  # a certificate of conversations takes some 50 ms
    for number in range(draws):
        scores = scores_of(law.draw(np.random.default_rng([8, number]), 400))
        certificate = certify(scores, alpha, DELTA, guarantee=Guarantee.EXPECTED, unit=unit, max_turns=law.longest)
        rate = law.rate if unit is BudgetUnit.TURN else law.calls
        bounds.append(rate_bound(scores, certificate.threshold, alpha, DELTA, unit=unit, max_turns=law.longest) / alpha)
        above_alpha += rate(certificate.threshold) > alpha
        above_bound += rate(certificate.threshold) > bounds[-1] * alpha
    print(  # noqa: T201
        f"{name}, {unit}: above alpha {above_alpha / draws:.2f}, above the bound {above_bound / draws:.3f}, "
        f"bound / alpha {np.mean(bounds):.2f}"
    )
    assert above_alpha / draws > 0.1
    assert is_within(above_bound, draws)


def test_an_alarm_against_alpha_does_not_fit_an_expected_budget(draws: int) -> None:
    """Against the bound at delta / 2, with the stream at delta / 2, false alarms stay within delta."""
    rng = np.random.default_rng(9)
    steps, n = 3_000, 300
    scores = np.sort(rng.normal(size=(draws, n)), axis=1)
    certificates = [certify(TurnScores(each), ALPHA, DELTA, guarantee=Guarantee.EXPECTED) for each in scores]
    thresholds = np.array([each.threshold for each in certificates])
    # It depends on the number of scores above the threshold, which is the same in all draws.
    bound = rate_bound(TurnScores(scores[0]), thresholds[0], ALPHA, DELTA / 2, unit=BudgetUnit.TURN, max_turns=1)
    calls = (rng.normal(size=(steps, draws)) > thresholds).astype(int)
    against_alpha = int((first_alarms(np.ones_like(calls), calls, ALPHA, 1) > 0).sum())
    against_bound = int((first_alarms(np.ones_like(calls), calls, bound, 1, DELTA / 2) > 0).sum())
    print(f"expected: {against_alpha / draws:.3f} against alpha, {against_bound / draws:.3f}")  # noqa: T201
    assert against_alpha / draws > DELTA + 5 * sqrt(DELTA * (1 - DELTA) / draws)
    assert is_within(against_bound, draws)


def test_the_reference_of_the_score_alarms_is_one_random_readable_turn_of_each_conversation() -> None:
    rng = np.random.default_rng(10)
    places = np.tile(np.arange(4.0), 3_000)
    d = np.where(rng.random(places.size) < 0.1, np.inf, places)
    reference = reference_scores(TurnScores.of(d, np.repeat(np.arange(3_000), 4)))
    assert (np.diff(reference) >= 0).all()
    assert 2_990 <= reference.size <= 3_000
    shares = np.bincount(reference.astype(int), minlength=4) / reference.size
    assert shares == pytest.approx(np.full(4, 0.25), abs=5 * sqrt(0.1875 / 3_000))
