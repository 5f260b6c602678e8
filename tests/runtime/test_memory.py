"""The memory of a process: which requests are of one conversation."""

import asyncio
import random
from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.runtime.memory import LocalMemory, Placement
from ctd_guardrail.text.conversation import Conversation


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation.from_messages([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def place(memory: LocalMemory, *texts: str) -> Placement:
    async def ask() -> Placement:
        return await memory.place(*await conversation(*texts).place())

    return asyncio.run(ask())


def test_the_requests_of_a_conversation_have_one_name() -> None:
    memory = LocalMemory()
    first = place(memory, "hello")
    second = place(memory, "hello", "hi, what can I do?", "sing")
    third = place(memory, "Hello ", "hi, what can I do?", "  SING", "la", "louder")
    assert first.conversation == second.conversation == third.conversation
    assert first.is_placed
    assert third.is_placed
    assert len({first.digest, second.digest, third.digest}) == 3


def test_conversations_that_begin_alike_stay_apart() -> None:
    memory = LocalMemory()
    names = [place(memory, "hello").conversation for _ in range(3)]
    later = [place(memory, "hello", "hi", f"question {i}").conversation for i in range(3)]
    assert len({*names}) == 3
    assert {*later} == {*names}


def test_a_repetition_and_an_edited_turn_belong_to_their_conversation() -> None:
    memory = LocalMemory()
    name = place(memory, "hello").conversation
    assert place(memory, "hello", "hi", "sing").conversation == name
    assert place(memory, "hello", "hi", "sing").conversation == name
    assert place(memory, "hello", "hi", "dance") == place(memory, "hello", "hi", "dance")
    assert place(memory, "hello", "hi", "dance").conversation == name


def test_a_conversation_whose_beginning_is_unknown_is_not_placed() -> None:
    memory = LocalMemory()
    forged = place(memory, "hello", "hi", "sing")
    assert not forged.is_placed
    assert place(memory, "hello", "hi", "sing", "la", "louder").conversation == forged.conversation


def test_conversations_continue_in_a_later_process() -> None:
    earlier, later = LocalMemory(), LocalMemory()
    first = place(earlier, "hello")
    later.restore(earlier.key, [(first.digest, first.conversation)])
    assert place(later, "hello", "hi", "sing").conversation == first.conversation


def test_digests_are_keyed_and_names_are_drawn() -> None:
    one, other = place(LocalMemory(), "hello"), place(LocalMemory(), "hello")
    assert one.digest != other.digest
    assert one.conversation != other.conversation


def test_the_number_of_digests_is_bounded() -> None:
    memory = LocalMemory(capacity=4)
    for i in range(20):
        place(memory, f"text {i}")
    assert len(memory._places) == 4


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), seed=st.integers(0, 2**32))
def test_interleaved_conversations_that_may_share_texts_keep_their_lengths(lengths: list[int], seed: int) -> None:
    """Whatever is swapped between conversations that begin alike, the number of requests of each stays."""
    memory, draw = LocalMemory(), random.Random(seed)
    texts = {i: [draw.choice("ab")] for i in range(len(lengths))}
    left, counted = dict(enumerate(lengths)), Counter[str]()
    while left:
        i = draw.choice([*left])
        counted[place(memory, *texts[i]).conversation] += 1
        texts[i] += [draw.choice("xy"), draw.choice("ab")]
        left[i] -= 1
        if not left[i]:
            del left[i]
    assert sum(counted.values()) == sum(lengths)
    by_length = defaultdict(int)
    for number in counted.values():
        by_length[number] += 1
    assert len(counted) == len(lengths)
