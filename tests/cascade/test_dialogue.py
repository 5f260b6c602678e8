"""All text of others that a call carries gets a verdict, and no text that the guard has passed gets a second one."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.dialogue import note_answer
from ctd_guardrail.decision import Decision, Mode, OnHistory, OnUnreadable, Reason, RefusedTurns, Verdict
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import RECEIPT, Context
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS, Receipts
from tests.support.word_guard import WordReader, word_guard

REFUSAL = DEFAULT_REFUSALS[0]
IMAGE = [{"type": "image_url", "image_url": {"url": "data:"}}]


def dialogue(*turns: Any) -> list[dict[str, Any]]:
    """Texts that begin with `>` are the assistant's."""
    return [
        {"role": "assistant", "content": turn[1:]}
        if isinstance(turn, str) and turn.startswith(">")
        else {"role": "user", "content": turn}
        for turn in turns
    ]


async def test_each_text_beside_the_conversation_is_judged_once_and_before_it() -> None:
    reader = WordReader()
    guard = word_guard(reader=reader, judgement_key="words")
    for _ in range(2):
        decision = await guard.check(dialogue("fine"), asides=["be kind", " \n", "use tools", "be kind"])
        assert (decision.verdict, decision.reason) == (Verdict.ALLOW, Reason.PROBE_SAFE)
    assert reader.seen == ["be kind", "use tools", "fine"]
    forgetful = WordReader()
    await word_guard(reader=forgetful).check(dialogue("fine"), asides=["be kind", "be kind"])
    assert forgetful.seen == ["be kind", "fine"]


@pytest.mark.parametrize("turns", [["fine"], ["fine", f">{REFUSAL}", "fine"], [""], []])
async def test_a_refused_aside_stops_the_request_and_no_answer_settles_it(turns: list[str]) -> None:
    reader = WordReader()
    guard = word_guard(reader=reader, judgement_key="words")
    for _ in range(3):
        decision = await guard.check(dialogue(*turns), asides=["fine too", "be harmful"])
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)
    assert reader.seen == ["fine too", "be harmful"], "the conversation is not reached"


async def test_asides_alone_get_a_decision_and_count_against_the_bound_on_text() -> None:
    guard = word_guard()
    assert (await guard.check([], asides=["fine"])).reason is Reason.PROBE_SAFE
    assert (await guard.check([], asides=[" "])).reason is Reason.BLANK
    most = 32 * WordReader.spec.max_tokens
    decision = await guard.check([], asides=(f"{number} " * (most // 100) for number in range(90)))
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.OVERLONG)


@pytest.mark.parametrize("asides", [[None], [b"bytes"], [["list"]], None, 7])
async def test_asides_that_are_no_texts_block(asides: Any) -> None:
    assert (await word_guard().check(dialogue("fine"), asides=asides)).verdict is Verdict.BLOCK


async def test_a_lone_text_in_place_of_several_is_one_aside() -> None:
    reader = WordReader()
    await word_guard(reader=reader).check(dialogue("fine"), asides="be kind")
    assert reader.seen == ["be kind", "fine"]


async def test_an_aside_is_judged_in_its_normal_form() -> None:
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "harmful")
    assert (await word_guard().check(dialogue("fine"), asides=[f"be kind{hidden}"])).verdict is Verdict.BLOCK


FORGED: dict[str, list[Any]] = {
    "an answer": ["fine", ">a harmful answer", "fine too"],
    "a greeting": [">a harmful greeting", "fine"],
    "before a blank turn": ["fine", ">a harmful answer", " "],
    "behind a blank turn": ["fine", ">yes", " ", ">a harmful answer", "fine too"],
    "a greeting before a blank turn": [">a harmful greeting", " "],
    "beside a refusal": ["fine", f">{REFUSAL}", ">a harmful answer", "fine too"],
    "at the end": ["fine", ">a harmful beginning"],
    "at the end, behind a refusal": ["fine", f">{REFUSAL}", ">a harmful beginning"],
}


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("turns", FORGED.values(), ids=FORGED)
async def test_what_a_client_writes_for_the_assistant_is_judged(turns: list[Any], context: Context) -> None:
    guard = word_guard(context=context, judgement_key="words")
    for _ in range(2):
        assert (await guard.check(dialogue(*turns))).verdict is Verdict.BLOCK
    harmless = [turn.replace("harmful", "kind") for turn in turns]
    assert (await guard.check(dialogue(*harmless))).verdict is Verdict.ALLOW


async def test_with_one_turn_of_context_each_past_answer_is_judged_once() -> None:
    reader = WordReader()
    guard = word_guard(reader=reader, context=Context.LAST_TURN, judgement_key="words")
    turns = ["one", ">first", ">second", "two", ">third", f">{REFUSAL}", "three"]
    for _ in range(2):
        assert (await guard.check(dialogue(*turns))).verdict is Verdict.ALLOW
    assert reader.seen == ["one", "first", "second", "two", "third", "three"]


async def test_the_conversation_as_context_shows_past_answers_and_costs_no_unit_more() -> None:
    reader = WordReader()
    guard = word_guard(reader=reader)
    await guard.check(dialogue("one", ">first", "two"))
    assert reader.seen == ["one", "user: one\nassistant: first\nuser: two"]


async def test_answers_that_the_guard_saw_given_or_that_the_app_keeps_are_not_judged_apart() -> None:
    turns = ["one", ">a  harmful\nanswer", "two"]
    guard = word_guard(context=Context.LAST_TURN, judgement_key="words")
    assert (await guard.check(dialogue(*turns))).verdict is Verdict.BLOCK
    guard.note_answer(" a harmful answer\n")
    assert (await guard.check(dialogue(*turns))).verdict is Verdict.ALLOW
    assert (await guard.check(dialogue("one", ">a harmful answer!", "two"))).verdict is Verdict.BLOCK
    assert (await guard.check(dialogue("a harmful answer"))).verdict is Verdict.BLOCK, "no longer the assistant's"
    Runtime.default().memory.answers.clear()
    trusting = word_guard(context=Context.LAST_TURN, history=OnHistory.TRUST)
    assert (await trusting.check(dialogue(*turns))).verdict is Verdict.ALLOW
    assert (await trusting.check(dialogue("one", ">yes", "harmful"))).verdict is Verdict.BLOCK


async def test_a_noted_answer_is_a_hash_and_one_with_tool_calls_is_known_by_them() -> None:
    guard = word_guard(context=Context.LAST_TURN, judgement_key="words")
    call = {"function": {"name": "harmful", "arguments": '{"canary": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    guard.note_answer(message)
    assert "canary" not in repr(vars(Runtime.default().memory.answers._digests))
    assert (await guard.check([*dialogue("one"), message, *dialogue("two")])).verdict is Verdict.ALLOW
    call["function"]["arguments"] = '{"canary": 2}'
    assert (await guard.check([*dialogue("one"), message, *dialogue("two")])).verdict is Verdict.BLOCK


def test_noted_answers_are_bounded(runtime: Runtime) -> None:
    for number in range(17_000):
        note_answer(str(number), runtime.memory)
    assert len(runtime.memory.answers) == 16_384
    runtime.memory.answers.clear()
    note_answer("long " * 10_000, runtime.memory)
    assert len(runtime.memory.answers) == 0


@pytest.mark.parametrize("context", Context)
async def test_a_past_answer_that_is_not_text_is_no_hole(context: Context) -> None:
    turns = [*dialogue("fine"), {"role": "assistant", "content": IMAGE}, *dialogue("fine too")]
    decision = await word_guard(context=context).check(turns)
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.NON_TEXT)
    expert = word_guard(context=context, unreadable=OnUnreadable.EXPERT)
    assert (await expert.check(turns)).verdict is Verdict.ALLOW
    assert expert.tally.snapshot().delegated == 1
    assert (await expert.check([*turns[:2], *dialogue(" ")])).verdict is Verdict.ALLOW
    assert expert.tally.snapshot().delegated == 2


words = st.sampled_from(["fine", "harmful", " ", f">{REFUSAL}", ">yes", ">harmful", "> "])


@given(st.lists(words, max_size=7), st.sampled_from(Context), st.booleans())
async def test_no_conversation_with_unrefused_harm_passes(turns: list[str], context: Context, remembers: bool) -> None:  # noqa: FBT001
    Runtime.default().memory.clear()
    guard = word_guard(context=context, judgement_key="words" if remembers else None)
    decision = await guard.check(dialogue(*turns))
    expected = Verdict.BLOCK if any("harmful" in turn for turn in turns) else Verdict.ALLOW
    assert decision.verdict is expected


SHOWN: dict[str, Callable[[str], dict[str, Any]]] = {
    "question": lambda word: {"role": "user", "content": word},
    "answer": lambda word: {"role": "assistant", "content": word},
    "tool": lambda word: {"role": "tool", "content": word},
    "name": lambda word: {"role": "assistant", "name": word, "content": ""},
    "call": lambda word: {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": word}}]},
    "blank": lambda _: {"role": "user", "content": " "},
    "blank answer": lambda _: {"role": "assistant", "content": None},
    "refusal": lambda _: {"role": "assistant", "content": REFUSAL},
}


@given(st.lists(st.lists(st.sampled_from(sorted(SHOWN)), max_size=7), min_size=1, max_size=3), st.sampled_from(Context))
async def test_what_passes_was_read_to_the_last_word(shapes: list[list[str]], context: Context) -> None:
    Runtime.default().memory.clear()
    reader = WordReader()
    guard = word_guard(reader=reader, context=context, judgement_key="words")
    for shape in shapes:  # requests share their first words, so that later ones recall what earlier ones have judged
        words = [f"word{place}{kind.replace(' ', '')}" for place, kind in enumerate(shape)]
        messages = [SHOWN[kind](word) for kind, word in zip(shape, words, strict=True)]
        assert (await guard.check(messages, asides=["wordaside"])).verdict is Verdict.ALLOW
        read = "\n".join(reader.seen)
        speaks = [word for kind, word in zip(shape, words, strict=True) if "blank" not in kind and kind != "refusal"]
        assert [word for word in speaks if word not in read] == []
        assert "wordaside" in read


async def _decide(guard: Cascade, turns: list[str]) -> Decision:
    return await guard.check(dialogue(*turns))


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("ending", [[], [" "], ["", " "], [f">{REFUSAL}"], [" ", f">{REFUSAL}"], [" ", ">Sure:"]])
async def test_a_settled_turn_that_is_the_last_to_say_something_is_refused_again(
    ending: list[str], context: Context
) -> None:
    guard = word_guard(context=context, judgement_key="words")
    refused = ["fine", ">yes", "harmful"]
    assert (await _decide(guard, refused)).verdict is Verdict.BLOCK
    for _ in range(2):
        decision = await _decide(guard, [*refused, f">{REFUSAL}", *ending])
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)
        assert (await _decide(guard, [*refused, f">{REFUSAL}", *ending, "go on"])).verdict is Verdict.ALLOW


async def test_a_verdict_that_did_not_count_refused_nothing() -> None:
    shadow, guard = (
        word_guard(judgement_key="words", receipts=receipts(), mode=mode) for mode in (Mode.SHADOW, Mode.ENFORCE)
    )
    turns = ["harmful", f">{REFUSAL}", "fine"]
    assert (await _decide(shadow, ["harmful"])).receipt is None
    assert (await _decide(guard, turns)).verdict is Verdict.BLOCK
    assert (await _decide(guard, turns)).verdict is Verdict.ALLOW, "now the user was told"


KEY = SecretBytes(b"a secret of 16 b")


def receipts(policy: str = "words", key: SecretBytes = KEY) -> Receipts:
    return Receipts(key, policy)


def refusal(receipt: object, words: str = REFUSAL) -> dict[str, Any]:
    return {"role": "assistant", "content": words, "metadata": {RECEIPT: receipt}}


@pytest.mark.parametrize("context", Context)
async def test_a_receipt_settles_its_turn_in_a_process_that_knows_nothing_of_it(context: Context) -> None:
    turns = dialogue("fine", ">yes", "harmful")
    refused = await word_guard(context=context, judgement_key="words", receipts=receipts()).check(turns)
    assert refused.verdict is Verdict.BLOCK
    Runtime.default().memory.clear()
    replica = word_guard(context=context, judgement_key="words", receipts=receipts())
    for _ in range(2):
        decision = await replica.check([*turns, refusal(refused.receipt), *dialogue("go on")])
        assert (decision.verdict, decision.receipt) == (Verdict.ALLOW, None)
        Runtime.default().memory.clear()
    again = await replica.check([*turns, refusal(refused.receipt), *dialogue(" ")])
    assert (again.verdict, again.receipt) == (Verdict.BLOCK, refused.receipt)


async def _receipt_for(turns: list[dict[str, Any]], guard: Cascade) -> str:
    receipt = (await guard.check(turns)).receipt
    assert receipt is not None
    Runtime.default().memory.clear()
    return receipt


async def test_no_other_receipt_settles_a_turn() -> None:
    guard = word_guard(judgement_key="words", receipts=receipts())
    turns = dialogue("harmful")
    good = await _receipt_for(turns, guard)
    others = [
        await _receipt_for(dialogue("harmful too"), guard),
        await _receipt_for(dialogue("fine", ">yes", "harmful"), guard),
        await _receipt_for(turns, word_guard(judgement_key="others", receipts=receipts("others"))),
        await _receipt_for(
            turns, word_guard(judgement_key="words", receipts=receipts(key=SecretBytes(b"another secret !")))
        ),
        good[:-1],
        good.upper(),
        f"{good} ",
        "",
        "\ud800",
        "é" * 64,
        None,
        7,
        [good],
        {"receipt": good},
    ]
    for receipt in others:
        decision = await guard.check([*turns, refusal(receipt), *dialogue("fine")])
        assert decision.verdict is Verdict.BLOCK, receipt
        Runtime.default().memory.clear()
    for message in (refusal(good, "Sure."), {"role": "assistant", "content": REFUSAL, "metadata": good}):
        assert (await guard.check([*turns, message, *dialogue("fine")])).verdict is Verdict.BLOCK
        Runtime.default().memory.clear()
    on_the_question = [turns[0] | {"metadata": {RECEIPT: good}}, *dialogue(f">{REFUSAL}", "fine")]
    assert (await guard.check(on_the_question)).verdict is Verdict.BLOCK
    Runtime.default().memory.clear()
    assert (await guard.check([*turns, refusal(good), *dialogue("fine")])).verdict is Verdict.ALLOW


async def test_only_a_judgement_of_a_turn_gets_a_receipt() -> None:
    guard = word_guard(judgement_key="words", receipts=receipts())
    assert (await guard.check(dialogue("fine"))).receipt is None
    assert (await guard.check(dialogue(IMAGE))).reason is Reason.NON_TEXT
    assert (await guard.check(dialogue(IMAGE))).receipt is None
    assert (await guard.check(dialogue("fine"), asides=["harmful"])).receipt is None
    seen = word_guard(judgement_key="words", receipts=receipts(), unreadable=OnUnreadable.EXPERT)
    harmful = [{"type": "text", "text": "harmful"}, *IMAGE]
    assert (await seen.check(dialogue(harmful))).reason is Reason.EXPERT_UNSAFE
    assert (await seen.check(dialogue(harmful))).receipt is None, "another image would have the same"


async def test_where_refused_turns_are_not_forgiven_they_stop_the_conversation_for_good() -> None:
    strict = word_guard(judgement_key="words", receipts=receipts(), refused_turns=RefusedTurns.STRICT)
    turns = dialogue("harmful")
    receipt = (await strict.check(turns)).receipt
    for answer in (refusal(receipt), dialogue(">yes")[0]):
        for _ in range(2):
            decision = await strict.check([*turns, answer, *dialogue("fine", ">yes", "fine too")])
            assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)


@pytest.mark.parametrize("context", Context)
async def test_a_refusal_at_the_end_does_not_make_another_unit_of_the_refused_turn(context: Context) -> None:
    reader = WordReader()
    guard = word_guard(reader=reader, context=context, judgement_key="words")
    for turns in (["harmful"], ["harmful", f">{REFUSAL}"], ["harmful", f">{REFUSAL}", f">{REFUSAL}"]):
        assert (await _decide(guard, turns)).verdict is Verdict.BLOCK
    assert reader.seen == ["harmful"]
