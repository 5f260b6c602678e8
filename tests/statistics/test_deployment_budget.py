"""Budgets certified on conversations: how often calibration misses them, and how much of them is used.

The rate of a threshold is the exact one of the law, so that no share is an estimate of an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from tests.support.traffic import Conversations

ALPHA, DELTA = 0.1, 0.05
CALLS = 0.4  # of a conversation
SMALL, LARGE = 1e-4, 1 - 1e-4

SINGLE = Conversations(mean=1, longest=1)
# Law, number of conversations, and the part of the budget that is used at least.
LAWS = {
    "four turns": (Conversations(correlation=0.5), 1_000, 0.801),
    "four turns that drift": (Conversations(correlation=0.8, drift=0.1), 1_000, 0.771),
    "more conversations": (Conversations(correlation=0.5, drift=0.1), 3_000, 0.887),
    "ten turns": (Conversations(mean=10, longest=50, correlation=0.5), 1_000, 0.810),
    "one turn": (SINGLE, 1_000, 0.849),
}


def calibrations(law: Conversations, conversations: int, draws: int) -> Iterator[TurnScores]:
    """Yield the scores of each of some calibrations."""
    rng = np.random.default_rng([conversations, law.longest])
    for _ in range(draws):
        turns = law.draw(rng, conversations)
        yield TurnScores.of(turns.d, turns.conversation)


def thresholds(law: Conversations, conversations: int, draws: int, alpha: float = ALPHA, **options: Any) -> list[float]:
    """Return the certified threshold of each of some calibrations."""
    return [certify(scores, alpha, DELTA, **options).threshold for scores in calibrations(law, conversations, draws)]


def is_within(violations: int, draws: int) -> bool:
    """Whether so many violations are possible where each calibration violates with probability delta at most."""
    return violations <= binom.ppf(LARGE, draws, DELTA)


def least_mean(values: np.ndarray, figure: float) -> float:
    """Return the least mean that a figure allows, up to three standard errors."""
    return figure - 3 * float(values.std()) / np.sqrt(values.size)


@pytest.mark.parametrize("name", LAWS)
def test_calls_per_judged_turn_stay_within_alpha(name: str, draws: int) -> None:
    law, conversations, figure = LAWS[name]
    rates = np.array([law.rate(threshold) for threshold in thresholds(law, conversations, draws)])
    violations = int((rates > ALPHA).sum())
    print(f"{name}: violated in {violations / draws:.3f}, mean rate / alpha {rates.mean() / ALPHA:.3f}")  # noqa: T201
    assert is_within(violations, draws)
    if law is SINGLE:  # the law of the rate is exact
        assert violations >= binom.ppf(SMALL, draws, 0.045)
    assert rates.mean() / ALPHA >= least_mean(rates / ALPHA, figure)


@pytest.mark.parametrize("name", LAWS)
def test_calls_per_conversation_stay_within_alpha(name: str, draws: int) -> None:
    law, conversations, _ = LAWS[name]
    found = thresholds(law, conversations, draws, CALLS, unit=BudgetUnit.CONVERSATION)
    calls = np.array([law.calls(threshold) for threshold in found])
    violations = int((calls > CALLS).sum())
    print(f"{name}: violated in {violations / draws:.3f}, mean calls / alpha {calls.mean() / CALLS:.3f}")  # noqa: T201
    assert is_within(violations, draws)
    assert calls.mean() / CALLS > 0.6


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("unit", BudgetUnit)
def test_expected_calls_stay_within_alpha_on_average(name: str, unit: BudgetUnit, draws: int) -> None:
    law, conversations, _ = LAWS[name]
    alpha = ALPHA if unit is BudgetUnit.TURN else CALLS
    realised: Callable[[float], float] = law.rate if unit is BudgetUnit.TURN else law.calls
    found = thresholds(law, conversations, draws, alpha, unit=unit, guarantee=Guarantee.EXPECTED)
    means = np.array([realised(threshold) for threshold in found]) / alpha
    print(f"{name}, {unit}: mean / alpha {means.mean():.3f}")  # noqa: T201
    assert means.mean() <= 1 + 3 * means.std() / np.sqrt(draws)
    assert means.mean() > 0.85


@pytest.mark.parametrize("name", LAWS)
def test_every_alpha_holds_at_once_where_alpha_is_chosen_after_looking(name: str, draws: int) -> None:
    law, conversations, _ = LAWS[name]
    alphas = np.array([0.02, 0.05, 0.1, 0.2, 0.5])
    rates = np.array(
        [
            [law.rate(certify(scores, alpha, DELTA, guarantee=Guarantee.SIMULTANEOUS).threshold) for alpha in alphas]
            for scores in calibrations(law, conversations, draws)
        ]
    )
    violations = int((rates > alphas).any(axis=1).sum())
    print(f"{name}: violated in {violations / draws:.3f}, mean rate / alpha {rates[:, 2].mean() / ALPHA:.3f}")  # noqa: T201
    assert is_within(violations, draws)
    assert rates[:, 2].mean() / ALPHA > 0.45


def test_turns_counted_as_if_they_were_independent_break_the_budget(draws: int) -> None:
    law, conversations, _ = LAWS["four turns that drift"]
    rng = np.random.default_rng(1)
    found = [certify(np.sort(law.draw(rng, conversations).d), ALPHA, DELTA).threshold for _ in range(draws)]
    assert not is_within(sum(law.rate(threshold) > ALPHA for threshold in found), draws)


def test_one_row_of_each_conversation_breaks_the_budget_where_later_turns_score_higher(draws: int) -> None:
    law = Conversations(correlation=0.5, drift=0.1)
    rng = np.random.default_rng(2)

    def first_turns() -> np.ndarray:
        turns = law.draw(rng, 3_000)
        return np.sort(turns.d[turns.place == 0])

    found = [certify(first_turns(), ALPHA, DELTA).threshold for _ in range(draws)]
    assert np.mean([law.rate(threshold) > ALPHA for threshold in found]) > 0.95


@pytest.mark.parametrize("name", ["four turns", "one turn"])
def test_unreadable_turns_are_paid_out_of_alpha(name: str, draws: int) -> None:
    law, conversations, _ = LAWS[name]
    law = Conversations(mean=law.mean, longest=law.longest, unreadable=0.03)
    trials = -(-draws // 4)
    rates = np.array([law.rate(threshold) for threshold in thresholds(law, conversations, trials)])
    assert is_within(int((rates > ALPHA).sum()), trials)
    assert rates.mean() / ALPHA > 0.7
