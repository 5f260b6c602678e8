"""What a request costs: its scores, its calls, its place, and the coin of the audits."""

import asyncio
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.decision import Decision, Mode, OnUnreadable, Reason, Route, Verdict
from ctd_guardrail.errors import ExpertUnavailableError, OverlongError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.observability.events import Audited, Event, Origin, Recalled, Served
from ctd_guardrail.runtime.memory import LocalMemory
from ctd_guardrail.text.conversation import Context, Conversation
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS
from tests.support.cascades import make_cascade
from tests.support.waiting import eventually

Message = dict[str, Any]


class Parts:
    """Scorer and expert: d is the number at the end of the newest message, the expert's score stands before it."""

    spec = ActivationSpec(model="model", layers=(1,))
    identity = "judge"

    def __init__(self, *, is_down: bool = False) -> None:
        self.is_down = is_down
        self.asked: list[Conversation] = []

    async def run(self, unit: Conversation, head: Any) -> Scored:
        text = unit.messages[-1].content
        if text == "overlong":
            raise OverlongError("too long")
        return Scored(np.array([[0.1, float(text.split()[-1])]]), queue_ms=0.0, forward_ms=0.0)

    async def score(self, unit: Conversation) -> ExpertScore:
        self.asked.append(unit)
        if self.is_down:
            raise ExpertUnavailableError("down")
        await asyncio.sleep(0)
        return ExpertScore(0.9 if "harm" in unit.messages[-1].content else 0.2)

    async def aclose(self) -> None:
        return None


class Traffic:
    """A cascade with its events."""

    def __init__(self, expert: Parts | None = None, **parts: Any) -> None:
        self.events: list[Event] = []
        self.expert = expert or Parts()
        parts = {"judgement_key": "key", "emit": self.events.append} | parts
        self.cascade = make_cascade(scorer=self.expert, expert=self.expert, **parts)

    async def ask(self, *texts: str) -> Decision:
        return await self.cascade.check(messages(*texts))

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def served(self) -> list[Served]:
        return self.of(Served)


def messages(*texts: str) -> list[Message]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


async def test_each_request_of_a_conversation_is_one_new_turn() -> None:
    traffic = Traffic()
    await traffic.ask("a -0.5")
    traffic.cascade.note_answer("yes -1")
    await traffic.ask("a -0.5", "yes -1", "b 0.5")
    first, second = traffic.served
    assert (first.scores, first.calls) == ((-0.5,), 0)
    assert (second.scores, second.calls) == ((0.5,), 1)
    assert first.conversation == second.conversation
    assert first.is_placed
    assert second.is_placed


async def test_a_recalled_turn_is_a_request_that_cost_nothing() -> None:
    traffic = Traffic()
    for _ in range(3):
        await traffic.ask("a 0.5")
    assert [(each.scores, each.calls) for each in traffic.served] == [((0.5,), 1), ((), 0), ((), 0)]
    assert traffic.of(Recalled) == [Recalled(Origin.CONFIGURED, is_newest=True)] * 2


@pytest.mark.parametrize("treatment", [OnUnreadable.EXPERT, OnUnreadable.BLOCK])
async def test_an_input_that_the_probes_cannot_read_counts_if_the_expert_gets_it(treatment: OnUnreadable) -> None:
    traffic = Traffic(on_overlong=treatment, on_nontext=treatment)
    await traffic.ask("overlong")
    await traffic.cascade.check([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    is_sent = treatment is OnUnreadable.EXPERT
    assert [(each.scores, each.calls) for each in traffic.served] == [((np.inf,) * is_sent, int(is_sent))] * 2
    assert len(traffic.expert.asked) == 2 * is_sent


async def test_the_calls_of_a_request_with_a_forged_history_are_bounded() -> None:
    traffic = Traffic(max_expert_calls=2)
    forged = [text for i in range(20) for text in (f"turn {i} 0.5", f"answer {i} -0.5")]
    decision = await traffic.ask(*forged, "last 0.5")
    (served,) = traffic.served
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.CAP_EXHAUSTED)
    assert served.calls == len(traffic.expert.asked) == 2
    assert not served.is_placed


async def test_a_request_may_lower_the_bound_on_its_calls_and_not_raise_it() -> None:
    traffic = Traffic(max_expert_calls=1)
    assert (await traffic.cascade.limited(0).check(messages("a 0.5"))).reason is Reason.CAP_EXHAUSTED
    assert (await traffic.cascade.limited(5).check(messages("b 0.5", "c -1", "d 0.5"))).reason is Reason.CAP_EXHAUSTED
    assert [each.calls for each in traffic.served] == [0, 1]


async def test_a_cancelled_request_is_served_once_with_its_calls() -> None:
    traffic = Traffic()
    task = asyncio.create_task(traffic.ask("a 0.5"))
    await eventually(lambda: traffic.expert.asked, every_s=0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [(each.scores, each.calls) for each in traffic.served] == [((0.5,), 1)]


async def test_a_self_test_is_no_traffic() -> None:
    traffic = Traffic()
    await traffic.cascade.for_self_test().check(messages("a 0.5"))
    assert not traffic.served


async def test_asides_cost_calls_and_give_no_scores_of_turns() -> None:
    traffic = Traffic()
    await traffic.cascade.check(messages("a -0.5"), asides=["system 0.5"])
    assert [(each.scores, each.calls) for each in traffic.served] == [((-0.5,), 1)]


async def test_a_text_that_is_repeated_is_audited_as_often_as_any_other() -> None:
    share, requests = 0.05, 5000
    traffic = Traffic(audit_share=share)
    for _ in range(requests):
        await traffic.ask("a -0.5")
    audits = len(traffic.of(Audited))
    low, high = binom.ppf([1e-6, 1.0 - 1e-6], requests, share)
    assert low <= audits <= high
    # The expert's answer is remembered: it is asked once.
    assert len(traffic.expert.asked) == sum(each.calls for each in traffic.served) == 1


async def test_an_audit_of_a_recalled_turn_asks_the_expert_once_and_its_verdict_stands() -> None:
    traffic = Traffic(audit_share=1.0 - 2.0**-52)
    quiet = Traffic(traffic.expert)
    first = await quiet.ask("harm -0.5")
    assert (first.verdict, first.route) == (Verdict.ALLOW, Route.PROBE)
    second, third = await traffic.ask("harm -0.5"), await traffic.ask("harm -0.5")
    assert (second.verdict, second.route) == (third.verdict, third.route) == (Verdict.BLOCK, Route.EXPERT)
    assert [event.is_missed for event in traffic.of(Audited)] == [True, True]
    assert [each.calls for each in traffic.served] == [1, 0]
    assert len(traffic.expert.asked) == 1


async def test_an_audit_without_an_answer_leaves_the_remembered_verdict() -> None:
    expert = Parts(is_down=True)
    traffic = Traffic(expert, audit_share=1.0 - 2.0**-52)
    quiet = Traffic(expert)
    first = await quiet.ask("harm -0.5")
    second = await traffic.ask("harm -0.5")
    assert first.verdict is second.verdict is Verdict.ALLOW
    assert [event.is_missed for event in traffic.of(Audited)] == [True]


IMAGE = {"role": "user", "content": [{"type": "text", "text": "look 0.0"}, {"type": "image_url", "image_url": {}}]}


async def test_a_turn_with_content_other_than_text_is_asked_about_once() -> None:
    traffic = Traffic(on_nontext=OnUnreadable.EXPERT, max_expert_calls=2)
    history: list[Message] = []
    for number in range(5):
        history += [IMAGE | {"content": [{"type": "text", "text": f"look {number}"}, *IMAGE["content"][1:]]}]
        assert (await traffic.cascade.check(history)).verdict is Verdict.ALLOW
        traffic.cascade.note_answer("yes -1")
        history += [{"role": "assistant", "content": "yes -1"}]
    assert (await traffic.cascade.check([*history, *messages("text -0.5")])).verdict is Verdict.ALLOW
    assert [each.calls for each in traffic.served] == [1, 1, 1, 1, 1, 0]
    assert traffic.served[-1].scores == (-0.5,)


async def test_a_typed_note_is_another_unit_than_the_content_that_it_stands_for() -> None:
    traffic = Traffic(on_nontext=OnUnreadable.EXPERT)
    await traffic.cascade.check([IMAGE])
    (asked,) = traffic.expert.asked
    typed = await traffic.ask(f"{asked.messages[0].content} -0.5")
    again = await traffic.cascade.check([IMAGE])
    assert (typed.route, again.route) == (Route.PROBE, Route.EXPERT)
    assert len(traffic.expert.asked) == 1


async def test_audits_use_up_no_call_that_a_later_turn_needs() -> None:
    traffic = Traffic(audit_share=1.0 - 2.0**-52, max_expert_calls=2)
    decision = await traffic.ask("a -0.5", "yes -1", "b -0.5", "yes -1", "c 0.5")
    assert (decision.verdict, decision.reason) == (Verdict.ALLOW, Reason.EXPERT_SAFE)
    (served,) = traffic.served
    assert served.calls == len(traffic.expert.asked) == 3


class Strict(Parts):
    """Parts whose probes alone block text with "bad" in it."""

    async def run(self, unit: Conversation, head: Any) -> Scored:
        d = float(unit.messages[-1].content.split()[-1])
        p = 0.9 if "bad" in unit.messages[-1].content else 0.1
        return Scored(np.array([[p, d]]), queue_ms=0.0, forward_ms=0.0)


async def test_an_audit_in_shadow_mode_leaves_a_refusal_a_refusal() -> None:
    memory = LocalMemory()
    enforcing = Traffic(Strict(), memory=memory)
    shadow = Traffic(Strict(), memory=memory, mode=Mode.SHADOW, audit_share=1.0 - 2.0**-52)
    harmful = "bad harm -0.5"
    assert (await enforcing.ask(harmful)).is_blocking
    await shadow.ask(harmful)
    assert len(shadow.of(Audited)) == 1
    later = await enforcing.ask(harmful, DEFAULT_REFUSALS[0], "fine -0.5")
    assert later.verdict is Verdict.ALLOW


async def test_an_audit_in_shadow_mode_makes_no_refusal_of_an_allowed_turn() -> None:
    memory = LocalMemory()
    enforcing = Traffic(Strict(), memory=memory)
    shadow = Traffic(Strict(), memory=memory, mode=Mode.SHADOW, audit_share=1.0 - 2.0**-52)
    missed = "harm -0.5"
    assert not (await enforcing.ask(missed)).is_blocking
    await shadow.ask(missed)
    assert [event.is_missed for event in shadow.of(Audited)] == [True]
    later = await enforcing.ask(missed, DEFAULT_REFUSALS[0], "fine -0.5")
    assert later.verdict is Verdict.BLOCK


class Broken(LocalMemory):
    """A memory whose methods raise."""

    def __init__(self, name: str) -> None:
        super().__init__()
        setattr(self, name, self._raise)

    async def _raise(self, *_: object) -> Any:
        raise ConnectionError("text of a user")


@pytest.mark.parametrize("name", ["place", "recall", "remember", "prefetch", "knows_answer"])
async def test_a_memory_that_raises_blocks_and_nothing_leaves_the_cascade(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    context = Context.LAST_TURN if name == "knows_answer" else Context.CONVERSATION
    traffic = Traffic(memory=Broken(name), context=context)
    decision = await traffic.ask("a -0.5", "maybe -1", "b -0.5", "perhaps -1", "c -0.5")
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.INTERNAL_ERROR)
    assert "text of a user" not in caplog.text
