"""Conversations of several turns: which are judged, what they are judged with, and what is remembered of them."""

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.decision import Decision, Mode, OnFailure, OnUnreadable, Reason, Route, Verdict
from ctd_guardrail.errors import ExpertUnavailableError, OverlongError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.runtime.decision_cache import DecisionCache
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Context, Conversation
from ctd_guardrail.text.refusals import Refusals
from tests.support.cascades import make_cascade

REFUSAL = "I'm sorry, I can't respond to that."


class Engine:
    """Finds `harmful` unsafe, and the expert worth asking about what is `odd`."""

    spec = ActivationSpec(model="model", layers=(1,), max_tokens=100)

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def run(self, unit: Conversation, head: Any) -> Scored:
        text = unit.plain_text()
        self.seen.append(text)
        if len(text) > 1000:
            raise OverlongError("too long")
        rows = np.array([[0.9 if "harmful" in text else 0.1, 0.5 if "odd" in text else -0.5]], dtype=np.float32)
        return Scored(rows, queue_ms=0.0, forward_ms=0.0)


class Judge:
    identity = "judge"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_down = False

    async def score(self, unit: Conversation) -> ExpertScore:
        self.seen.append(unit.plain_text())
        if self.is_down:
            raise ExpertUnavailableError("down")
        return ExpertScore(0.9 if "harmful" in unit.plain_text() else 0.1)

    async def aclose(self) -> None:
        return None


class TurnGuard:
    """A cascade whose policy has a name of its own, so that it remembers."""

    number = itertools.count()

    def __init__(self, *, on_failure: OnFailure = OnFailure.BLOCK, **changes: Any) -> None:
        self.engine, self.judge = Engine(), Judge()
        self.cascade = make_cascade(
            scorer=self.engine,
            probes=lambda ragged: ragged.values,
            expert=self.judge,
            on_failure=on_failure,
            **{"judgement_key": f"policy {next(self.number)}"} | changes,
        )

    async def check(self, *turns: Any) -> Decision:
        """Check user and assistant texts in turns."""
        roles = itertools.cycle(["user", "assistant"])
        return await self.cascade.check(
            [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        )


SHAPES = {
    "answered": ["harmful", "sure", "fine"],
    "far back": ["harmful", "sure", "fine", "yes", "fine too"],
    "in the middle": ["fine", "yes", "harmful", "sure", "fine too"],
    "by the expert": ["odd and harmful", "sure", "fine"],
}


@pytest.mark.parametrize("context", list(Context))
@pytest.mark.parametrize("turns", SHAPES.values(), ids=SHAPES)
async def test_an_earlier_harmful_turn_is_seen_again_and_again(turns: list[str], context: Context) -> None:
    guard = TurnGuard(context=context)
    for _ in range(3):
        assert (await guard.check(*turns)).verdict is Verdict.BLOCK


@pytest.mark.parametrize("context", list(Context))
async def test_two_turns_without_an_answer_between_are_one(context: Context) -> None:
    guard = TurnGuard(context=context)
    messages = [{"role": "user", "content": text} for text in ("harmful", "fine")]
    assert (await guard.cascade.check(messages)).verdict is Verdict.BLOCK
    assert guard.engine.seen == ["user: harmful\nuser: fine"]


@pytest.mark.parametrize("context", list(Context))
async def test_a_turn_that_was_refused_and_answered_stops_and_poisons_nothing(context: Context) -> None:
    guard = TurnGuard(context=context)
    turns = ["fine", "yes", "harmful", REFUSAL.upper() + " ", "fine again"]
    assert (await guard.check(*turns)).verdict is Verdict.BLOCK, "the guard has not refused it yet"
    assert (await guard.check(*turns[:3])).verdict is Verdict.BLOCK
    decision = await guard.check(*turns)
    assert (decision.verdict, decision.reason) == (Verdict.ALLOW, Reason.PROBE_SAFE)
    last = "user: fine\nassistant: yes\nuser: fine again" if context is Context.CONVERSATION else "fine again"
    assert guard.engine.seen[-1] == last
    assert (await guard.check(*turns, "yes", "harmful")).verdict is Verdict.BLOCK


@pytest.mark.parametrize("answer", ["Sure! Step one:", f"{REFUSAL} But here it is:", "", "I can't"])
async def test_a_forged_answer_does_not_settle_a_refused_turn(answer: str) -> None:
    guard = TurnGuard()
    for turns in (["harmful"], ["harmful", answer, "go on"], ["harmful", answer, "go on"]):
        assert (await guard.check(*turns)).verdict is Verdict.BLOCK


async def test_an_app_has_its_own_words_for_a_refusal() -> None:
    turns = ["harmful", "Not here.", "fine"]
    for guard, verdict in ((TurnGuard(), Verdict.BLOCK), (TurnGuard(refusals=Refusals(["Not  HERE."])), Verdict.ALLOW)):
        await guard.check("harmful")
        assert (await guard.check(*turns)).verdict is verdict


async def test_a_retry_of_what_was_refused_is_refused_without_work() -> None:
    guard = TurnGuard()
    first, again = await guard.check("odd and harmful"), await guard.check("odd and harmful")
    assert (first.verdict, first.reason) == (again.verdict, again.reason) == (Verdict.BLOCK, Reason.EXPERT_UNSAFE)
    assert (first.p, first.d, first.p_expert) == (again.p, again.d, again.p_expert)
    assert again.timings.probe_ms == again.timings.expert_ms == 0
    assert len(guard.engine.seen) == len(guard.judge.seen) == 1
    counts = guard.cascade.tally.snapshot()
    assert (counts.total, counts.recalled, counts.expert_attempts) == (1, 1, 1)


async def test_a_growing_conversation_pays_for_each_turn_once() -> None:
    guard = TurnGuard()
    turns: list[str] = []
    for number in range(10):
        turns = [*turns, f"odd {number}", "yes"]
        assert (await guard.check(*turns[:-1])).verdict is Verdict.ALLOW
    assert len(guard.engine.seen) == len(guard.judge.seen) == 10


async def test_a_failure_is_never_remembered() -> None:
    guard = TurnGuard(on_failure=OnFailure.ALLOW)
    guard.judge.is_down = True
    assert (await guard.check("odd and harmful")).reason is Reason.EXPERT_UNAVAILABLE
    guard.judge.is_down = False
    decision = await guard.check("odd and harmful", "here you are", "fine")
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.EXPERT_UNSAFE)


async def test_an_outage_does_not_settle_what_it_left_unjudged() -> None:
    guard = TurnGuard()
    guard.judge.is_down = True
    assert (await guard.check("odd", REFUSAL, "fine")).reason is Reason.EXPERT_UNAVAILABLE


async def test_policies_do_not_share_what_they_remember() -> None:
    one, two = TurnGuard(), TurnGuard()
    for guard in (one, two):
        await guard.check("odd")
    assert len(one.judge.seen) == len(two.judge.seen) == 1


async def test_without_a_policy_nothing_is_remembered() -> None:
    guard = TurnGuard(judgement_key=None)
    for _ in range(2):
        await guard.check("odd")
    assert len(guard.judge.seen) == 2


async def test_the_memory_is_bounded_and_forgets_what_was_not_used() -> None:
    memory = DecisionCache(capacity=3)
    decision = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)
    for unit in ("a", "b", "c"):
        memory.put("policy", unit, decision)
    assert memory.get("policy", "a") == decision
    memory.put("policy", "d", decision)
    assert len(memory) == 3
    assert [memory.get("policy", unit) is None for unit in "abcd"] == [False, True, False, False]
    memory.put("policy", "e", Decision(Verdict.BLOCK, Route.PROBE, Reason.OVERLOADED))
    assert memory.get("policy", "e") is None
    assert memory.get("another", "d") is None


async def test_nothing_but_hashes_is_remembered() -> None:
    await TurnGuard().check("canary")
    assert "canary" not in repr(Runtime.default().memory.decisions._decisions._values)


@pytest.mark.parametrize(
    ("content", "turns"),
    [("", 0), (None, 0), ([], 0), (" \n", 0), ("fine", 1), (["fine"], 1), ([{"type": "text", "text": "fine"}], 1)],
)
async def test_a_blank_turn_costs_nothing(content: Any, turns: int) -> None:
    guard = TurnGuard()
    decision = await guard.check(content)
    assert decision.verdict is Verdict.ALLOW
    assert (decision.reason is Reason.BLANK) == (turns == 0)
    assert len(guard.engine.seen) == turns


async def test_a_blank_turn_does_not_hide_an_earlier_one() -> None:
    assert (await TurnGuard().check("harmful", "sure", "")).verdict is Verdict.BLOCK
    guard = TurnGuard()
    for _ in range(3):
        assert (await guard.check("harmful", REFUSAL, "")).reason is Reason.PROBE_UNSAFE


async def test_tool_results_are_screened_and_system_prompts_are_not() -> None:
    tool = {"role": "tool", "content": "harmful"}
    system = {"role": "system", "content": "harmful"}
    called = {"role": "assistant", "content": None, "tool_calls": [{}]}
    question = {"role": "user", "content": "fine"}
    assert (await TurnGuard().cascade.check([system, question])).verdict is Verdict.ALLOW
    assert (await TurnGuard().cascade.check([question, called, tool])).verdict is Verdict.BLOCK
    assert (
        await TurnGuard().cascade.check([question, called, tool, {"role": "assistant", "content": "x"}])
    ).verdict == "block"


async def test_a_beginning_put_into_the_models_mouth_is_screened() -> None:
    guard = TurnGuard()
    assert (await guard.check("fine", "sure, something harmful")).verdict is Verdict.BLOCK


IMAGE = [{"type": "text", "text": "fine"}, {"type": "image_url", "image_url": {"url": "data:harmful"}}]


async def test_other_content_than_text_is_blocked_or_left_out_or_the_experts() -> None:
    blocked = TurnGuard()
    assert (await blocked.check(IMAGE)).reason is Reason.NON_TEXT
    assert blocked.engine.seen == blocked.judge.seen == []

    allowed = TurnGuard(on_nontext=OnUnreadable.ALLOW)
    assert (await allowed.check(IMAGE)).verdict is Verdict.ALLOW
    assert allowed.engine.seen == ["fine"]
    harmful = [{"type": "text", "text": "harmful"}, *IMAGE]
    assert (await allowed.check(harmful)).verdict is Verdict.BLOCK

    delegated = TurnGuard(on_nontext=OnUnreadable.EXPERT)
    for _ in range(2):
        decision = await delegated.check(IMAGE)
        assert (decision.verdict, decision.route, decision.reason) == ("allow", "expert", "expert_safe")
    assert delegated.judge.seen == ["fine\n[content that is not text]"]  # remembered the second time
    assert delegated.cascade.tally.snapshot().delegated == 1
    delegated.judge.is_down = True
    other = [{"type": "text", "text": "also fine"}, *IMAGE[1:]]
    assert (await delegated.check(other)).reason is Reason.EXPERT_UNAVAILABLE


@pytest.mark.parametrize("unreadable", [IMAGE, "fine " * 300], ids=["an image", "overlong"])
async def test_what_could_not_be_read_is_settled_by_no_answer(unreadable: Any) -> None:
    guard = TurnGuard()
    assert (await guard.check(unreadable)).verdict is Verdict.BLOCK
    for answer in (REFUSAL, "I see."):
        assert (await guard.check(unreadable, answer, "fine")).verdict is Verdict.BLOCK


async def test_overlong_input_is_blocked_or_the_experts() -> None:
    overlong = "fine " * 300
    assert (await TurnGuard().check(overlong)).reason is Reason.OVERLONG
    guard = TurnGuard(on_overlong=OnUnreadable.EXPERT)
    for text, verdict in ((overlong, Verdict.ALLOW), (overlong + "harmful", Verdict.BLOCK)):
        decision = await guard.check(text)
        assert (decision.verdict, decision.route) == (verdict, Route.EXPERT)
    assert guard.cascade.tally.snapshot().delegated == 2


async def test_a_forged_history_of_many_turns_does_not_cost_their_square() -> None:
    guard = TurnGuard()
    decision = await guard.check(*(["fine", "yes"] * 1000), "fine")
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.OVERLONG)
    assert sum(map(len, guard.engine.seen)) < 2 * 32 * Engine.spec.max_tokens


async def test_a_shadow_decides_and_counts_and_blocks_nothing() -> None:
    guard = TurnGuard(mode=Mode.SHADOW)
    unsafe = await guard.check("harmful")
    guard.judge.is_down = True
    broken = await guard.check("odd")
    assert [unsafe.verdict, broken.verdict] == [Verdict.BLOCK] * 2
    assert not unsafe.is_blocking
    assert not broken.is_blocking
    counts = guard.cascade.tally.snapshot()
    assert counts.decisions[Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE] == 1
    assert counts.failures == 1
    assert (await TurnGuard().check("harmful")).is_blocking


async def test_many_conversations_at_once_do_not_mix() -> None:
    guard = TurnGuard()
    turns = [[f"{number} {word}", "yes", "fine"] for number in range(50) for word in ("harmful", "plain")]
    decisions = await asyncio.gather(*(guard.check(*each) for each in turns))
    assert [decision.verdict for decision in decisions] == [Verdict.BLOCK, Verdict.ALLOW] * 50
