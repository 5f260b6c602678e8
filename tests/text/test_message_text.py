"""All text of a message that a main LLM reads is read here as well, and nothing else of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nemoguardrails.server.schemas.utils import normalize_tool_calls_openai
from openai.types.chat import ChatCompletionMessage

from ctd_guardrail.decision import Reason, Verdict
from ctd_guardrail.errors import InputError
from ctd_guardrail.text.conversation import Context, Conversation, Message
from ctd_guardrail.text.message_text import size_of, texts_of
from ctd_guardrail.text.normalise import normalise
from tests.support.word_guard import word_guard

CALL = {"id": "call_a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ([{"type": "input_text", "text": "hello"}], [None, "hello"]),
        ({"text": "hello"}, [None, "hello"]),
        ([{"type": "thinking", "thinking": {"steps": ["one", "two"]}}], [None, "one", "two"]),
        ([{"type": "image_url", "image_url": {"url": "https://host/a.png", "detail": "low"}}], [None]),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}], [None]),
        ([{"type": "image", "source": "data:image/png;base64,AAAA"}], [None]),
        ([{"type": "file", "file": {"file_data": "AAAA", "filename": "read me"}}], [None, "read me"]),
    ],
    ids=str,
)
def test_words_in_a_part_of_unknown_form_are_read_beside_the_note_that_it_is_no_text(
    content: Any, texts: list[str | None]
) -> None:
    assert texts_of({"role": "user", "content": content}) == texts


def content_of(message: dict[str, Any]) -> str:
    (read,) = Conversation.from_messages([message]).messages
    return read.content


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"role": "user", "name": "alice", "content": "hi"}, "alice\nhi"),
        ({"role": "user", "name": "", "content": "hi"}, "hi"),
        ({"role": "user", "name": None, "content": ["a", {"type": "text", "text": "b"}]}, "a\nb"),
        ({"role": "tool", "name": "weather", "tool_call_id": "call_a1", "content": "sunny"}, "weather\nsunny"),
        ({"role": "tool", "tool_call_id": "do as I say", "content": "sunny"}, "do as I say\nsunny"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "weather\ncity\nRome"),
        ({"role": "assistant", "content": "Wait.", "tool_calls": [CALL, CALL]}, "Wait." + "\nweather\ncity\nRome" * 2),
        ({"role": "assistant", "content": None, "function_call": CALL["function"]}, "weather\ncity\nRome"),
        # As NeMo Guardrails and LangChain keep them.
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "find", "args": {"id": "x", "n": [1, True]}}]},
            "\nfind\nid\nx\nn\n1\nTrue",
        ),
        ({"role": "assistant", "content": None, "refusal": "I will not."}, "I will not."),
        ({"role": "assistant", "content": "yes", "reasoning_content": "Let me see."}, "Let me see.\nyes"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not."),
        # Custom tools of OpenAI take plain text.
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "run", "input": "ls -l"}}]},
            "run\nls -l",
        ),
        (
            {"role": "assistant", "tool_calls": [CALL | {"id": "write this down"}]},
            "id\nwrite this down\nweather\ncity\nRome",
        ),
        ({"role": "assistant", "tool_calls": [CALL | {"note": "psst"}]}, "weather\ncity\nRome\nnote\npsst"),
        ({"role": "assistant", "tool_calls": "weather"}, "weather"),
        ({"role": "user", "content": "hi", "metadata": {"a": "b"}, "weight": 0}, "hi"),
    ],
    ids=str,
)
def test_names_and_tool_calls_are_lines_of_the_text(message: dict[str, Any], content: str) -> None:
    assert content_of(message) == content


def test_the_shapes_of_the_host_and_of_the_client_library_are_read_alike() -> None:
    kept = {"id": "call_a1", "name": "weather", "args": {"city": "Rome"}}
    (served,) = normalize_tool_calls_openai([kept])
    message = ChatCompletionMessage(role="assistant", content=None, tool_calls=[served])
    for dumped in (message.model_dump(), message.model_dump(exclude_none=True)):
        assert content_of(dumped) == "weather\ncity\nRome"
    assert content_of({"role": "assistant", "tool_calls": [kept]}) == "weather\ncity\nRome"


def test_an_escape_hides_no_letter_and_a_repeated_key_no_value() -> None:
    arguments = json.dumps({"text": "é"}) + " "
    assert "\\u" in arguments
    assert content_of({"role": "assistant", "function_call": {"name": "f", "arguments": arguments}}) == "f\ntext\né"
    twice = '{"a": "first", "a": "second"}'
    assert content_of({"role": "assistant", "function_call": {"arguments": twice}}) == "a\nfirst\na\nsecond"
    assert content_of({"role": "assistant", "function_call": {"arguments": "{not JSON"}}) == "{not JSON"


def test_depth_and_long_numbers_are_read_and_what_json_cannot_hold_is_not_text() -> None:
    deep: Any = "bottom"
    for _ in range(10_000):
        deep = [deep]
    assert content_of({"role": "assistant", "tool_calls": [{"args": deep}]}) == "bottom"
    brackets = "[" * 100_000
    assert content_of({"role": "assistant", "tool_calls": [{"arguments": brackets}]}) == brackets
    wrapped: Any = {"name": "inner"}
    for _ in range(10_000):
        wrapped = {"function": wrapped}
    assert content_of({"role": "assistant", "tool_calls": [wrapped]}).endswith("name\ninner")
    assert content_of({"role": "user", "name": 10**5000}).startswith("0x")
    with pytest.raises(InputError):
        Conversation.from_messages([{"role": "assistant", "tool_calls": [{"args": b"bytes"}]}])


scalars = st.text(max_size=8) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (key, *texts_in(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


@given(values, st.booleans())
def test_every_text_inside_arguments_is_read_in_its_order(value: Any, is_written_as_json: bool) -> None:  # noqa: FBT001
    arguments = json.dumps(value) if is_written_as_json else [value]  # a bare string is JSON or text
    read = texts_of({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]})
    assert read is not None
    assert read[0] == "f"
    rest = iter(read[1:])
    assert all(text in rest for text in texts_in(value) if text.strip())
    assert size_of({"role": "user", "content": read}) == sum(len(text or "") for text in read)


@given(st.text(), st.sampled_from(["user", "assistant", "tool"]))
def test_a_message_of_content_alone_is_its_normal_form(text: str, role: str) -> None:
    expected = Message("assistant" if role == "assistant" else "user", normalise(text))
    assert Conversation.from_messages([{"role": role, "content": text}]).messages == (expected,)
    plain = {"role": role, "content": text, "name": None, "tool_calls": None, "refusal": None, "function_call": None}
    assert Conversation.from_messages([plain]).messages == (expected,)


HARM: list[dict[str, Any]] = [
    {"role": "user", "name": "harmful", "content": "hi"},
    {"role": "user", "name": "harmful", "content": None},
    {"role": "assistant", "name": "harmful", "content": "hi"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '"har\\u006dful"'}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "harmful", "args": {}}]},
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"harmful": 1}'}},
    {"role": "tool", "name": "harmful", "content": ""},
]


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("message", HARM, ids=str)
async def test_harm_in_any_of_it_is_judged_wherever_the_message_stands(
    message: dict[str, Any], context: Context
) -> None:
    question = {"role": "user", "content": "fine"}
    for messages in ([message], [question, message], [question, message, question], [message, question]):
        decision = await word_guard(context=context).check(messages)
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)
