"""Budgets from the policy on disk to the calls of the deployed guard.

A policy holds the turns of whole conversations, `plan` derives the threshold that runs, and the real cascade serves new
conversations of the same law. The laws of the certificates alone are in `test_conversation_laws.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.decision import OnUnreadable
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.plan import Budget, Plan, plan
from ctd_guardrail.policy.store import CalibrationScores, read_policy
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from ctd_guardrail.policy.unreadable import Unreadable, UnreadableTurns
from tests.support.deployment import Deployment, by_text, name_turns, serve
from tests.support.policies import write_plain_policy
from tests.support.traffic import Conversations

DELTA = 0.05
LAW = Conversations(mean=3, longest=8, correlation=0.8, drift=0.1)
CONVERSATIONS = 400


class Promise(NamedTuple):
    """A budget, and the least part of it that is used on average."""

    guarantee: Guarantee
    unit: BudgetUnit
    alpha: float
    used: float

    @property
    def budget(self) -> Budget:
        return Budget(guarantee=self.guarantee)

    def realised(self, law: Conversations, threshold: float) -> float:
        """What alpha bounds: calls per turn, or calls per conversation."""
        return law.rate(threshold) if self.unit is BudgetUnit.TURN else law.calls(threshold)


PROMISES = [
    Promise(Guarantee.EXACT, BudgetUnit.TURN, 0.1, 0.65),
    Promise(Guarantee.EXACT, BudgetUnit.CONVERSATION, 0.5, 0.7),
    Promise(Guarantee.EXPECTED, BudgetUnit.TURN, 0.1, 0.9),
    Promise(Guarantee.EXPECTED, BudgetUnit.CONVERSATION, 0.5, 0.9),
    Promise(Guarantee.SIMULTANEOUS, BudgetUnit.TURN, 0.1, 0.35),
]


def calibrate(folder: Path, law: Conversations, rng: np.random.Generator, promise: Promise, budget: Budget) -> Plan:
    """Write a policy that was calibrated on conversations of the law, and return the plan that its reader gets."""
    drawn = law.draw(rng, CONVERSATIONS)
    is_readable = np.isfinite(drawn.d)
    # Conversations without a readable turn come last.
    is_last = ~np.isin(drawn.conversation, drawn.conversation[is_readable])
    numbers = np.unique(drawn.conversation + is_last * CONVERSATIONS, return_inverse=True)[1]
    turns = TurnScores.of(drawn.d[is_readable], numbers[is_readable])
    overlong = UnreadableTurns(numbers[~is_readable], np.ones(int((~is_readable).sum()), dtype=np.bool_))
    rows = turns.d[: turns.conversations]
    write_plain_policy(
        folder,
        rows=rows.size,
        scores=CalibrationScores(rows, np.linspace(0, 1, rows.size)),
        turns=turns,
        unreadable=overlong if len(overlong) else None,
        calibration={
            "rows": rows.size,
            "alpha": promise.alpha,
            "delta": DELTA,
            "seed": 0,
            "unit": promise.unit,
            "conversations": turns.conversations,
            "turns": turns.turns,
            "max_turns": law.longest,
        },
    )
    return plan(read_policy(folder), budget)


def thresholds(
    factory: pytest.TempPathFactory, law: Conversations, promise: Promise, budget: Budget, draws: int
) -> list[float]:
    """Return the threshold that runs after each of some calibrations."""
    rng = np.random.default_rng(15)
    return [calibrate(factory.mktemp("policy"), law, rng, promise, budget).rule.threshold for _ in range(draws)]


def is_within(violations: int, draws: int) -> bool:
    """Whether so many violations are possible where each calibration violates with probability delta at most."""
    return violations <= binom.ppf(1 - 1e-4, draws, DELTA)


@pytest.mark.parametrize("promise", PROMISES)
def test_the_plan_of_a_policy_keeps_its_budget_and_uses_it(
    promise: Promise, draws: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = thresholds(tmp_path_factory, LAW, promise, promise.budget, -(-draws // 2))
    used = np.array([promise.realised(LAW, threshold) for threshold in found]) / promise.alpha
    print(f"{promise}: above alpha in {(used > 1).mean():.3f}, mean part of alpha {used.mean():.3f}")  # noqa: T201
    if promise.guarantee is Guarantee.EXPECTED:
        assert used.mean() <= 1 + 3 * used.std() / np.sqrt(used.size)
    else:
        assert is_within(int((used > 1).sum()), used.size)
    assert used.mean() > promise.used


@pytest.mark.parametrize("treatment", [OnUnreadable.EXPERT, OnUnreadable.BLOCK])
def test_unreadable_turns_are_paid_out_of_alpha_if_the_expert_gets_them(
    treatment: OnUnreadable, draws: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    law = replace(LAW, unreadable=0.03)
    is_sent = treatment is OnUnreadable.EXPERT
    budget = Budget(unreadable=frozenset({Unreadable.OVERLONG} if is_sent else ()))
    realised = law if is_sent else LAW
    found = thresholds(tmp_path_factory, law, PROMISES[0], budget, -(-draws // 4))
    used = np.array([realised.rate(threshold) for threshold in found]) / PROMISES[0].alpha
    assert is_within(int((used > 1).sum()), used.size)
    assert used.mean() > 0.6


@pytest.mark.parametrize("promise", PROMISES)
async def test_the_real_cascade_makes_the_calls_of_the_plan(promise: Promise, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    running = calibrate(tmp_path, LAW, rng, promise, promise.budget)
    turns = LAW.draw(rng, 400)
    texts = name_turns(turns)
    deployment = Deployment(running.rule.threshold, by_text(texts, turns.d), max_expert_calls=2)
    calls = await serve(deployment, texts, turns.conversation, range(turns.d.size))
    deployment.close()
    assert calls.tolist() == (turns.d > running.rule.threshold).tolist()
    many = LAW.draw(rng, 20_000)
    spread = np.bincount(many.conversation, many.d > running.rule.threshold).std() * np.sqrt(400)
    assert abs(calls.sum() - 400 * LAW.calls(running.rule.threshold)) < 5 * spread


async def test_audits_are_paid_out_of_alpha(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    running = calibrate(tmp_path, LAW, rng, PROMISES[0], Budget(audit_share=0.03))
    turns = LAW.draw(rng, 800)
    texts = name_turns(turns)
    deployment = Deployment(running.rule.threshold, by_text(texts, turns.d), audit_share=0.03)
    calls = await serve(deployment, texts, turns.conversation, range(turns.d.size))
    deployment.close()
    due = turns.d > running.rule.threshold
    assert calls[due].all()
    audited, others = int(calls[~due].sum()), int((~due).sum())
    assert binom.ppf(1e-6, others, 0.03) <= audited <= binom.ppf(1 - 1e-6, others, 0.03)
    assert 0.03 + 0.97 * LAW.rate(running.rule.threshold) <= PROMISES[0].alpha


def test_one_row_of_each_conversation_breaks_the_budget_where_later_turns_score_higher() -> None:
    law = Conversations(correlation=0.5, drift=0.1)
    rng = np.random.default_rng(3)

    def certified_on_first_turns() -> float:
        turns = law.draw(rng, 3_000)
        return certify(np.sort(turns.d[turns.place == 0]), 0.1, DELTA).threshold

    assert np.mean([law.rate(certified_on_first_turns()) > 0.1 for _ in range(100)]) > 0.95
