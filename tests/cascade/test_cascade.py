import asyncio
import logging
import math
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.decision import OnFailure, Reason, Route, Verdict
from ctd_guardrail.errors import (
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    OverloadedError,
    OverlongError,
)
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import CountedCascade, make_cascade

CERTIFICATE = certify(np.linspace(-1.0, 1.0, 1001), 0.3, 0.1)
ABOVE, BELOW = CERTIFICATE.threshold + 0.01, CERTIFICATE.threshold - 0.01


class Engine:
    """Gives fixed scores, or raises."""

    spec = ActivationSpec(model="model", layers=(1,))

    def __init__(self, p: float, d: float, error: BaseException | None = None) -> None:
        self.scores, self.error = [(p, d)], error

    async def run(self, conversation: Conversation, head: Any) -> Scored:
        assert isinstance(conversation, Conversation)
        if self.error is not None:
            raise self.error
        return Scored(np.array(self.scores), queue_ms=0.0, forward_ms=0.0)


class Judge:
    identity = "judge"

    def __init__(self, answer: float | BaseException = 0.0) -> None:
        self.answer, self.calls = answer, 0

    async def score(self, conversation: Conversation) -> ExpertScore:
        assert conversation.messages
        self.calls += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return ExpertScore(self.answer, attempts=2)

    async def aclose(self) -> None:
        return None


def cascade(engine: Engine, judge: Judge, on_failure: OnFailure = OnFailure.BLOCK) -> CountedCascade:
    return make_cascade(
        scorer=engine,
        probes=lambda ragged: ragged.values,
        rule=ThresholdRule(CERTIFICATE.threshold),
        expert=judge,
        on_failure=on_failure,
    )


def user(text: Any = "hello") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("p", "d", "answer", "verdict", "route", "reason"),
    [
        (0.2, BELOW, 1.0, Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE),
        (0.5, BELOW, 0.0, Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE),
        (0.2, ABOVE, 0.5, Verdict.BLOCK, Route.EXPERT, Reason.EXPERT_UNSAFE),
        (0.9, ABOVE, 0.4, Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_SAFE),
        (0.9, CERTIFICATE.threshold, 0.0, Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE),
    ],
)
async def test_the_expert_decides_strictly_above_the_threshold_and_the_probe_elsewhere(
    p: float, d: float, answer: float, verdict: Verdict, route: Route, reason: Reason
) -> None:
    judge = Judge(answer)
    guard = cascade(Engine(p, d), judge)
    decision = await guard.check(user())
    assert (decision.verdict, decision.route, decision.reason) == (verdict, route, reason)
    assert (decision.p, decision.d) == (p, d)
    assert decision.p_expert == (answer if route is Route.EXPERT else None)
    assert judge.calls == (route is Route.EXPERT)
    counts = guard.tally.snapshot()
    assert counts.decisions == {(verdict, route, reason): 1}
    assert counts.expert_attempts == 2 * judge.calls


async def test_the_merged_score_decides_and_the_experts_own_is_reported() -> None:
    judged = []
    for weight in (0.25, 0.75):
        guard = make_cascade(
            scorer=Engine(0.1, ABOVE),
            probes=lambda ragged: ragged.values,
            rule=ThresholdRule(CERTIFICATE.threshold),
            expert=Judge(0.8),
            merge=Merge(kind="average", weight=weight),
        )
        decision = await guard.check(user())
        assert decision.p_expert == 0.8
        judged.append((decision.verdict, decision.reason))
    # (1 - w) .1 + w .8 is .275, and .625.
    assert judged == [(Verdict.ALLOW, Reason.EXPERT_SAFE), (Verdict.BLOCK, Reason.EXPERT_UNSAFE)]


async def test_a_conversation_counts_by_its_worst_window_and_by_its_worthiest() -> None:
    engine = Engine(0.0, BELOW)
    engine.scores = [(0.9, -1.0), (0.1, ABOVE)]
    judge = Judge(0.0)
    decision = await cascade(engine, judge).check(user())
    assert (decision.p, decision.d, judge.calls) == (0.9, ABOVE, 1)


EXPERT_FAULTS = [
    (ExpertTimeoutError("late"), Reason.EXPERT_TIMEOUT),
    (ExpertUnavailableError("down"), Reason.EXPERT_UNAVAILABLE),
    (ExpertVerdictError("odd"), Reason.EXPERT_BAD_VERDICT),
    (RuntimeError("bug"), Reason.INTERNAL_ERROR),
    (math.nan, Reason.EXPERT_BAD_VERDICT),
    (1.5, Reason.EXPERT_BAD_VERDICT),
]


@pytest.mark.parametrize(("fault", "reason"), EXPERT_FAULTS)
@pytest.mark.parametrize("p", [0.1, 0.9])
@pytest.mark.parametrize("policy", list(OnFailure))
async def test_an_expert_that_fails_leaves_the_verdict_to_the_stated_policy(
    fault: float | BaseException, reason: Reason, p: float, policy: OnFailure
) -> None:
    guard = cascade(Engine(p, ABOVE), Judge(fault), policy)
    decision = await guard.check(user())
    expected = {
        OnFailure.BLOCK: Verdict.BLOCK,
        OnFailure.ALLOW: Verdict.ALLOW,
        OnFailure.PROBE: Verdict.BLOCK if p > 0.5 else Verdict.ALLOW,
    }[policy]
    assert (decision.verdict, decision.reason, decision.route) == (expected, reason, Route.EXPERT)
    assert decision.p_expert is None
    counts = guard.tally.snapshot()
    assert counts.failures == 1
    assert counts.expert_attempts >= 1


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Engine(0, 0, OverloadedError("busy")), Reason.OVERLOADED),
        (Engine(0, 0, RuntimeError("bug")), Reason.INTERNAL_ERROR),
        (Engine(math.nan, BELOW), Reason.INTERNAL_ERROR),
        (Engine(0.1, math.nan), Reason.INTERNAL_ERROR),
        (Engine(0.1, math.inf), Reason.INTERNAL_ERROR),
    ],
)
async def test_without_a_probe_score_the_policy_probe_blocks(engine: Engine, reason: Reason) -> None:
    for policy, verdict in [("block", "block"), ("probe", "block"), ("allow", "allow")]:
        judge = Judge()
        decision = await cascade(engine, judge, OnFailure(policy)).check(user())
        assert (decision.verdict, decision.reason, decision.p) == (verdict, reason, None)
        assert judge.calls == 0


@pytest.mark.parametrize("policy", list(OnFailure))
async def test_the_failure_policy_is_no_way_around_a_limit_on_the_form_of_inputs(policy: OnFailure) -> None:
    overlong = await cascade(Engine(0, 0, OverlongError("long")), Judge(), policy).check(user())
    image = await cascade(Engine(0.0, BELOW), Judge(), policy).check(user([{"type": "image_url"}]))
    odd = await cascade(Engine(0.0, BELOW), Judge(), policy).check([{"role": "nobody", "content": "hello"}])
    assert [decision.verdict for decision in (overlong, image, odd)] == [Verdict.BLOCK] * 3
    assert [decision.reason for decision in (overlong, image, odd)] == ["overlong", "non_text", "non_text"]


@pytest.mark.parametrize(
    "messages",
    [
        user([{"type": "image_url", "image_url": {"url": "data:"}}]),
        user(7),
        user(b"bytes"),
        [{"role": "nobody", "content": "x"}],
        [None],
        ["text"],
        None,
        42,
    ],
)
async def test_what_cannot_be_read_is_a_failure_and_never_allowed(messages: Any) -> None:
    decision = await cascade(Engine(0.0, BELOW), Judge()).check(messages)
    assert decision.verdict is Verdict.BLOCK
    assert decision.reason.is_failure


@pytest.mark.parametrize("messages", [user(""), user(" \n\t"), user(None), user([]), []])
async def test_a_blank_input_is_allowed_without_work(messages: Any) -> None:
    guard = cascade(Engine(1.0, ABOVE, RuntimeError("must not run")), Judge(1.0))
    decision = await guard.check(messages)
    assert (decision.verdict, decision.reason) == (Verdict.ALLOW, Reason.BLANK)


async def test_a_cancellation_from_inside_blocks_and_the_callers_own_propagates() -> None:
    decision = await cascade(Engine(0.0, ABOVE), Judge(asyncio.CancelledError())).check(user())
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.EXPERT_UNAVAILABLE)
    decision = await cascade(Engine(0.0, ABOVE, asyncio.CancelledError()), Judge()).check(user())
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.INTERNAL_ERROR)

    class Slow(Judge):
        async def score(self, conversation: Conversation) -> ExpertScore:
            await asyncio.sleep(60)
            return ExpertScore(0.0)

    task = asyncio.create_task(cascade(Engine(0.0, ABOVE), Slow()).check(user()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_no_text_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for fault in (ExpertUnavailableError("canary"), RuntimeError("canary"), ExpertVerdictError("canary")):
        await cascade(Engine(0.0, ABOVE), Judge(fault)).check(user("canary"))
    assert "guard failure" in caplog.text
    assert "canary" not in caplog.text


async def test_the_rate_of_delegation_stays_within_the_budget() -> None:
    judge = Judge(0.0)
    engine = Engine(0.1, 0.0)
    guard = cascade(engine, judge)
    for d in np.random.default_rng(0).uniform(-1, 1, 2000):
        engine.scores = [(0.1, float(d))]
        await guard.check(user())
    counts = guard.tally.snapshot()
    assert counts.total == 2000
    assert counts.delegated == judge.calls <= 0.3 * 2000
    assert counts.delegated > 0.2 * 2000


@pytest.mark.parametrize(("d", "answer"), [(BELOW, 0.0), (ABOVE, 0.55)])
@pytest.mark.parametrize("verdict", list(Verdict))
async def test_a_score_in_the_abstain_band_gets_the_stated_verdict(d: float, answer: float, verdict: Verdict) -> None:
    guard = make_cascade(
        scorer=Engine(0.45 if d == BELOW else 0.1, d),
        probes=lambda ragged: ragged.values,
        rule=ThresholdRule(CERTIFICATE.threshold),
        expert=Judge(answer),
        abstain_band=0.1,
        on_abstain=verdict,
    )
    decision = await guard.check(user())
    assert (decision.verdict, decision.reason) == (verdict, Reason.ABSTAINED)
    assert not decision.reason.is_failure
