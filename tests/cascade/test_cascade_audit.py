"""Inputs that the expert judges by a coin, to learn what the cascade alone misses."""

import asyncio
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.errors import ExpertTimeoutError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.observability.events import Audited, Event, Routed
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import CountedCascade, make_cascade
from tests.support.waiting import eventually

ALWAYS = 1.0 - 2.0**-53
ABOVE, BELOW = 0.5, 0.0


class Engine:
    spec = ActivationSpec(model="model", layers=(1,))

    def __init__(self, p: float, d: float) -> None:
        self.rows = np.array([[p, d]])

    async def run(self, conversation: Conversation, probes: Any) -> Scored:
        return Scored(self.rows, queue_ms=1.0, forward_ms=2.0)


class Judge:
    identity = "judge"

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "hang":
            await asyncio.sleep(60)
        return ExpertScore(self.answer)

    async def aclose(self) -> None:
        return None


class Seen:
    """Notes what the monitors read."""

    def __init__(self) -> None:
        self.routed_to: list[tuple[float, bool, bool]] = []
        self.missed: list[bool] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Routed(d, is_delegated, is_audited):
                self.routed_to.append((d, is_delegated, is_audited))
            case Audited(is_missed):
                self.missed.append(is_missed)


def guard(p: float, d: float, judge: Judge, seen: Seen, share: float = ALWAYS, **options: Any) -> CountedCascade:
    return make_cascade(
        scorer=Engine(p, d),
        rule=ThresholdRule(0.2),
        expert=judge,
        audit_share=share,
        emit=seen,
        **options,
    )


async def check(cascade: Cascade) -> Decision:
    return await cascade.check([{"role": "user", "content": "hello"}])


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
    seen = Seen()
    decision = await check(guard(p, BELOW, Judge(answer), seen))
    assert (decision.verdict, decision.reason, decision.route) == (verdict, reason, Route.EXPERT)
    assert seen.routed_to == [(BELOW, True, True)]
    assert seen.missed == [missed]


@pytest.mark.parametrize(("p", "verdict", "missed"), [(0.1, Verdict.ALLOW, True), (0.9, Verdict.BLOCK, False)])
@pytest.mark.parametrize("fault", [ExpertTimeoutError("late"), RuntimeError("bug"), "hang"])
async def test_an_audit_without_an_answer_leaves_the_probes_verdict_and_may_have_missed_harm(
    p: float, verdict: Verdict, fault: Any, *, missed: bool
) -> None:
    seen = Seen()
    decision = await check(guard(p, BELOW, Judge(fault), seen, deadline_s=0.05 if fault == "hang" else None))
    assert decision.verdict is verdict
    assert not decision.reason.is_failure
    assert decision.route is Route.EXPERT
    assert seen.missed == [missed]


async def test_a_client_that_leaves_during_an_audit_hides_no_miss_and_no_delegation() -> None:
    seen = Seen()
    task = asyncio.create_task(check(guard(0.1, BELOW, Judge("hang"), seen)))
    await eventually(lambda: seen.routed_to, every_s=0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (seen.routed_to, seen.missed) == ([(BELOW, True, True)], [True])


@pytest.mark.parametrize("answer", [0.1, 0.9, ExpertTimeoutError("late")])
async def test_what_the_rule_delegates_is_asked_about_once_and_not_missed(answer: float | Exception) -> None:
    judge, seen = Judge(answer), Seen()
    decision = await check(guard(0.1, ABOVE, judge, seen))
    assert judge.calls == 1
    assert decision.reason.is_failure == isinstance(answer, Exception)
    assert seen.missed == [False]


async def test_the_coin_falls_on_its_share_of_the_inputs() -> None:
    judge, seen = Judge(0.1), Seen()
    cascade = guard(0.1, BELOW, judge, seen, 0.1)
    for _ in range(2000):
        await check(cascade)
    assert len(seen.missed) == judge.calls == sum(audited for _, _, audited in seen.routed_to)
    assert 130 < judge.calls < 270  # five standard deviations
    await check(guard(0.1, BELOW, judge, seen := Seen(), 0.0))
    assert (seen.routed_to, seen.missed) == ([(BELOW, False, False)], [])
