"""Inputs that the expert judges by a coin, to learn what the cascade alone misses."""

from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.reading import Reading
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.cascade import Cascade
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.decision import Decision, FailurePolicy, Reason, Route, Verdict
from ctd_guardrail.errors import ExpertTimeoutError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.rule import ThresholdRule

ALWAYS = 1.0 - 2.0**-53
ABOVE, BELOW = 0.5, 0.0


class Engine:
    spec = ActivationSpec(model="model", layers=(1,))

    def __init__(self, p: float, d: float) -> None:
        self.rows = np.array([[p, d]])

    async def run(self, conversation: Conversation, probes: Any) -> Reading:
        return Reading(self.rows, queue_ms=1.0, forward_ms=2.0)


class Judge:
    identity = "judge"

    def __init__(self, answer: float | Exception) -> None:
        self.answer, self.calls = answer, 0

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return ExpertScore(self.answer)

    async def aclose(self) -> None:
        return None


async def check(
    p: float, d: float, judge: Judge, share: float, policy: FailurePolicy = FailurePolicy.BLOCK
) -> Decision:
    guard = Cascade(
        engine=Engine(p, d),  # type: ignore[arg-type]
        probes=None,  # type: ignore[arg-type]
        rule=ThresholdRule(0.2),
        decision_threshold=0.5,
        expert=judge,
        on_failure=policy,
        audit_share=share,
    )
    return await guard.check([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("p", "answer", "verdict", "reason", "missed"),
    [
        (0.1, 0.1, Verdict.ALLOW, Reason.EXPERT_SAFE, False),
        (0.1, 0.9, Verdict.BLOCK, Reason.EXPERT_UNSAFE, True),
        (0.9, 0.1, Verdict.ALLOW, Reason.EXPERT_SAFE, False),
        (0.9, 0.9, Verdict.BLOCK, Reason.EXPERT_UNSAFE, False),
    ],
)
async def test_the_expert_judges_an_audited_input_and_harm_that_the_probe_let_pass_is_missed(
    p: float, answer: float, verdict: Verdict, reason: Reason, *, missed: bool
) -> None:
    decision = await check(p, BELOW, Judge(answer), ALWAYS)
    assert (decision.verdict, decision.reason, decision.route) == (verdict, reason, Route.EXPERT)
    assert decision.missed is missed


@pytest.mark.parametrize(("p", "verdict", "missed"), [(0.1, Verdict.ALLOW, True), (0.9, Verdict.BLOCK, False)])
@pytest.mark.parametrize("fault", [ExpertTimeoutError("late"), RuntimeError("bug")])
async def test_an_audit_without_an_answer_leaves_the_probes_verdict_and_may_have_missed_harm(
    p: float, verdict: Verdict, fault: Exception, *, missed: bool
) -> None:
    decision = await check(p, BELOW, Judge(fault), ALWAYS)
    assert decision.verdict is verdict
    assert not decision.reason.is_failure
    assert decision.route is Route.EXPERT
    assert decision.missed is missed


@pytest.mark.parametrize(
    ("answer", "policy", "missed"),
    [
        (0.1, FailurePolicy.BLOCK, False),
        (0.9, FailurePolicy.BLOCK, False),
        (ExpertTimeoutError("late"), FailurePolicy.BLOCK, False),
        (ExpertTimeoutError("late"), FailurePolicy.ALLOW, True),
    ],
)
async def test_what_the_rule_delegates_is_asked_about_once_and_missed_where_a_failure_let_it_pass(
    answer: float | Exception, policy: FailurePolicy, *, missed: bool
) -> None:
    judge = Judge(answer)
    decision = await check(0.1, ABOVE, judge, ALWAYS, policy)
    assert judge.calls == 1
    assert decision.missed is missed


async def test_the_coin_falls_on_its_share_of_the_inputs() -> None:
    judge = Judge(0.1)
    decisions = [await check(0.1, BELOW, judge, 0.1) for _ in range(2000)]
    audited = sum(decision.missed is not None for decision in decisions)
    assert audited == judge.calls
    assert 130 < audited < 270  # five standard deviations
    assert (await check(0.1, BELOW, judge, 0.0)).missed is None
