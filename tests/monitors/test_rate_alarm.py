import json

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.e_detector import factors, idle, started
from ctd_guardrail.monitors.rate_alarm import RateAlarm, rate_bets
from ctd_guardrail.policy.turns import BudgetUnit


def test_evidence_is_the_mean_over_bets_plus_the_idle_capital() -> None:
    alarm = RateAlarm(0.2, delta=1e-6)
    alarm.update(1)
    alarm.update(0)
    bets = factors(0.2)
    in_play = started(1) * bets.hit * bets.miss + started(2) * bets.miss
    assert alarm.evidence == pytest.approx(in_play.mean() + idle(2), rel=1e-12)


def test_it_stays_silent_while_nothing_is_delegated() -> None:
    alarm = RateAlarm(0.1)
    assert not any(alarm.update(0) for _ in range(5000))
    assert alarm.evidence < 1.0


def test_it_is_raised_once_and_stays_raised() -> None:
    alarm = RateAlarm(0.1, delta=0.05)
    raised = [alarm.update(1) for _ in range(50)]
    first = raised.index(True)
    assert all(raised[first:])
    assert alarm.alarmed_at == alarm.steps == first + 1
    assert alarm.evidence >= 20
    assert alarm.update(0)


def test_a_larger_delta_never_alarms_later() -> None:
    stream = np.random.default_rng(2).random(3000) < 0.2
    at = []
    for delta in (0.2, 0.05, 0.001):
        alarm = RateAlarm(0.1, delta=delta)
        for delegated in stream:
            alarm.update(int(delegated))
        assert alarm.alarmed_at is not None
        at.append(alarm.alarmed_at)
    assert at == sorted(at)


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    stream = (np.random.default_rng(3).random(600) < 0.15).astype(int).tolist()
    whole, first = RateAlarm(0.1), RateAlarm(0.1)
    for calls in stream[:100]:
        first.update(calls)
    second = RateAlarm.from_state(json.loads(json.dumps(first.state())))
    for calls in stream[:100]:
        whole.update(calls)
    for calls in stream[100:]:
        assert second.update(calls) == whole.update(calls)
    assert second.state() == whole.state()


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_limit_that_is_no_rate_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="limit"):
        RateAlarm(value)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_levels_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        RateAlarm(0.1, delta=value)


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 0.0},
        {"limit": "a tenth"},
        {"max_turns": 0},
        {"unit": "year"},
        {"delta": 0.0},
        {"steps": -1},
        {"steps": 1.5},
        {"evidence": float("nan")},
        {"alarmed_at": 0},
        {"capital": [1.0]},
        {"capital": ["x"] * 5},
        {"capital": [float("inf")] * 5},
        {"surplus": 1},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"rate alarm.*{next(iter(change))}"):
        RateAlarm.from_state(RateAlarm(0.1).state() | change)


def test_a_state_without_a_field_is_refused() -> None:
    state = RateAlarm(0.1).state()
    del state["capital"]
    with pytest.raises(DataError, match="lacks the field 'capital'"):
        RateAlarm.from_state(state)


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.5, 0.97])
def test_the_bets_on_single_requests_are_likelihood_ratios(limit: float) -> None:
    bets = factors(limit)
    assert 1 + rate_bets(limit) * (1 - limit) == pytest.approx(bets.hit)
    assert 1 - rate_bets(limit) * limit == pytest.approx(bets.miss)


@pytest.mark.parametrize(("limit", "max_turns"), [(0.1, 20), (0.5, 50)])
def test_no_conversation_ends_a_bet(limit: float, max_turns: int) -> None:
    alarm = RateAlarm(limit, max_turns=max_turns)
    alarm.update(0, max_turns)
    assert min(alarm.state()["capital"]) > 0
    assert (1 - rate_bets(limit, max_turns=max_turns) * limit * max_turns).min() == pytest.approx(0.1)


def test_a_conversation_is_one_step() -> None:
    alarm = RateAlarm(0.1, delta=1e-6, max_turns=5)
    alarm.update(2, 4)
    factor = 1 + rate_bets(0.1, max_turns=5) * (2 - 0.4)
    assert alarm.evidence == pytest.approx(started(1) * factor.mean() + idle(1))
    with pytest.raises(DataError, match="6 requests, not 5"):
        alarm.update(0, 6)


def test_a_budget_per_conversation_counts_conversations() -> None:
    alarm = RateAlarm(1.2, delta=1e-6, unit=BudgetUnit.CONVERSATION, max_turns=5)
    alarm.update(3, 5)
    stakes = rate_bets(1.2, unit=BudgetUnit.CONVERSATION, max_turns=5)
    assert alarm.evidence == pytest.approx(started(1) * (1 + stakes * (3 - 1.2)).mean() + idle(1))
    assert stakes.max() * 1.2 < 1
    assert RateAlarm.from_state(alarm.state()).state() == alarm.state()
