"""Certificates on conversations against populations whose rates are known exactly.

Turns of one conversation are correlated, and their scores drift along it. The certificates must hold all the same, and
use about as much of the budget as such data allow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from ctd_guardrail.policy.betting import Bets
from ctd_guardrail.policy.budget import BudgetUnit, Certificate, Guarantee, Status, certify
from ctd_guardrail.policy.turns import TurnScores
from tests.support.traffic import Conversations

DRAWS = [40, pytest.param(2000, marks=pytest.mark.slow)]
ALPHA, DELTA = 0.1, 0.05


class World(NamedTuple):
    """Conversations of geometric length, and the share of the budget that bets must use at least."""

    conversations: int
    mean: float
    most: int
    correlation: float
    drift: float
    used: float

    @property
    def law(self) -> Conversations:
        return Conversations(mean=self.mean, longest=self.most, correlation=self.correlation, drift=self.drift)

    def draw(self, seed: int) -> TurnScores:
        rng = np.random.default_rng([seed, self.conversations, self.most])
        return self.law.draw(rng, self.conversations).scores

    def rates(self, threshold: float) -> tuple[float, float]:
        """Calls per turn and per conversation; none at an infinite threshold."""
        return self.law.rate(threshold), self.law.calls(threshold)


# A plain betting rule (WSR, a threshold at a time) uses .801, .771, .887, .810 and .795.
WORLDS = [
    World(1000, 4, 20, 0.5, 0.0, 0.82),
    World(1000, 4, 20, 0.8, 0.1, 0.785),
    World(3000, 4, 20, 0.5, 0.1, 0.9),
    World(1000, 10, 50, 0.5, 0.0, 0.822),
]


def within(violations: int, draws: int, probability: float = DELTA) -> bool:
    """Whether so many violations are compatible with a probability of at most this, at three standard errors."""
    return violations / draws <= probability + 3 * math.sqrt(probability * (1 - probability) / draws)


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("world", WORLDS)
def test_bets_keep_the_budget_of_turns_and_use_it(world: World, draws: int) -> None:
    rates = np.array(
        [
            world.rates(certify(world.draw(seed), ALPHA, DELTA, max_turns=world.most).threshold)[0]
            for seed in range(draws)
        ]
    )
    assert within(int((rates > ALPHA).sum()), draws)
    error = float(rates.std()) / math.sqrt(draws)
    assert rates.mean() / ALPHA + 3 * error / ALPHA >= world.used
    assert rates.mean() / ALPHA > 0.77


@pytest.mark.parametrize("draws", DRAWS)
def test_bets_on_single_turns_use_nearly_what_the_closed_form_does(draws: int) -> None:
    """So the price of conversations is their dependence, and not the method."""
    rng = np.random.default_rng(1)
    used, violations = [], 0
    for _ in range(draws):
        scores = TurnScores(np.sort(rng.random(1000)))
        threshold = Bets(scores, DELTA, unit=BudgetUnit.TURN, max_turns=1).threshold(ALPHA)
        violations += 1 - threshold > ALPHA
        used.append(1 - threshold)
    assert within(violations, draws)
    assert np.mean(used) / ALPHA > 0.83  # closed form .849


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("alpha", [0.3, 1.5])
def test_bets_keep_a_budget_of_calls_per_conversation(alpha: float, draws: int) -> None:
    world = WORLDS[1]
    calls = np.array(
        [
            world.rates(
                certify(world.draw(seed), alpha, DELTA, unit=BudgetUnit.CONVERSATION, max_turns=world.most).threshold
            )[1]
            for seed in range(draws)
        ]
    )
    assert within(int((calls > alpha).sum()), draws)
    assert calls.mean() / alpha > 0.7


@pytest.mark.parametrize("draws", DRAWS)
def test_a_file_that_grows_may_be_certified_at_every_look(draws: int) -> None:
    """Seven looks at one delta: none of them is wrong, with probability 1 - delta."""
    world = World(4000, 4, 12, 0.5, 0.1, 0.0)
    wrong, last = 0, []
    for seed in range(draws):
        whole = world.draw(seed)
        assert whole.conversation is not None
        rates = []
        for n in (500, 700, 1000, 1400, 2000, 2800, 4000):
            kept = whole.conversation < n
            part = TurnScores(whole.d[kept], whole.conversation[kept])
            rates.append(world.rates(certify(part, ALPHA, DELTA, max_turns=12, first_look=500).threshold)[0])
        wrong += max(rates) > ALPHA
        last.append(rates[-1])
    assert within(wrong, draws)
    assert np.mean(last) / ALPHA > 0.85


@pytest.mark.parametrize("draws", DRAWS)
def test_rare_conversations_that_are_all_calls_do_not_break_a_bet(draws: int) -> None:
    """The worst law for a normal approximation: most of the calls come from few long conversations."""
    rng = np.random.default_rng(2)
    most, share = 20, 0.005
    # Calls per turn at a threshold just below 0: a share of conversations with 20 calls of 20, the others none of one.
    rate = share * most / (share * most + 1 - share)
    certified = 0
    for _ in range(draws):
        is_long = rng.random(600) < share
        lengths = np.where(is_long, most, 1)
        conversation = np.repeat(np.arange(600), lengths)
        d = np.where(is_long[conversation], 1.0, -1.0)
        certificate = certify(TurnScores.of(d, conversation), rate * 0.999, DELTA, max_turns=most)
        certified += certificate.status is Status.CERTIFIED and certificate.threshold < 1.0
    assert within(certified, draws)


@pytest.mark.parametrize("draws", DRAWS)
def test_a_thinned_sample_keeps_all_budgets_together(draws: int) -> None:
    world = World(400, 4, 12, 0.8, 0.1, 0.0)
    alphas = np.linspace(0.05, 0.5, 10).tolist()
    wrong = 0
    for seed in range(draws):
        scores = world.draw(seed)
        certificates: list[Certificate] = [
            certify(scores, alpha, DELTA, guarantee=Guarantee.SIMULTANEOUS, max_turns=12) for alpha in alphas
        ]
        wrong += any(world.rates(c.threshold)[0] > c.alpha for c in certificates)
    assert within(wrong, draws)


@pytest.mark.parametrize("draws", [400, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unit", BudgetUnit)
def test_conformal_control_keeps_the_mean(unit: BudgetUnit, draws: int) -> None:
    world = World(200, 4, 12, 0.5, 0.1, 0.0)
    alpha = 0.2 if unit is BudgetUnit.TURN else 0.8
    turns, calls = np.array(
        [
            world.rates(
                certify(world.draw(seed), alpha, DELTA, unit=unit, guarantee=Guarantee.EXPECTED, max_turns=12).threshold
            )
            for seed in range(draws)
        ]
    ).T
    found = turns if unit is BudgetUnit.TURN else calls
    error = float(found.std()) / math.sqrt(draws)
    assert found.mean() <= alpha + 3 * error
    assert found.mean() >= 0.9 * alpha


@pytest.mark.parametrize("draws", DRAWS)
def test_turns_counted_as_independent_rows_break_the_budget(draws: int) -> None:
    """The mistake that the other methods are for."""
    world = WORLDS[1]
    rates = [world.rates(certify(world.draw(seed).d, ALPHA, DELTA).threshold)[0] for seed in range(draws)]
    assert not within(sum(rate > ALPHA for rate in rates), draws, 0.1)
