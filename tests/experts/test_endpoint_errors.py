"""Causes at the endpoint told apart by who provokes them, in the forms of real servers."""

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from ctd_guardrail.cascade.on_failure import reason_of
from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.decision import Reason
from ctd_guardrail.errors import ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.complaint import read_complaint, stated_error
from ctd_guardrail.experts.openai.completion import is_only_markup, read_completion
from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.endpoints import OUTAGES, SENDERS, WORD, completion, logprobs, openai_error, refusing, serve

ODD = Conversation.from_text(f"a text with {WORD} in it")
PLAIN = Conversation.from_text("how do I bake bread?")


async def _ask(base_url: str, *conversations: Conversation, **settings: Any) -> list[ExpertScore]:
    expert = OpenAIExpert(OpenAIExpertConfig(type="openai", base_url=base_url, model="judge", **settings))
    try:
        return [await expert.score(conversation) for conversation in conversations]
    finally:
        await expert.aclose()


async def _error(base_url: str, *conversations: Conversation, **settings: Any) -> ExpertError:
    with pytest.raises(ExpertError) as raised:
        await _ask(base_url, *conversations, **settings)
    assert WORD not in str(raised.value)
    assert raised.value.__cause__ is None
    return raised.value


@pytest.mark.parametrize("scoring", ["logprobs", "json"])
@pytest.mark.parametrize("has_answered", [True, False], ids=["after an answer", "as the first text"])
@pytest.mark.parametrize("name", SENDERS)
async def test_what_a_sender_provokes_is_never_an_outage(
    judges: Any, name: str, scoring: str, *, has_answered: bool
) -> None:
    refusal, words = SENDERS[name]
    judge = serve(judges, refusing(WORD, refusal))
    before = [PLAIN] if has_answered else []
    error = await _error(judge.base_url, *before, ODD, scoring=scoring)
    assert isinstance(error, ExpertVerdictError)
    assert reason_of(error) is Reason.EXPERT_BAD_VERDICT
    assert words in str(error)
    # At most one harmless text is asked about, and none where the form of the request is known.
    assert len(judge.requests) <= 2
    # Nothing was learnt from the sender's text.
    (score,) = await _ask(judge.base_url, PLAIN, scoring=scoring)
    assert score.p_unsafe == pytest.approx(0.8)


@pytest.mark.parametrize("name", OUTAGES)
async def test_what_no_sender_provokes_is_an_outage(judges: Any, name: str) -> None:
    fault, is_transient = OUTAGES[name]
    judge = serve(judges, refusing(WORD, fault))
    error = await _error(judge.base_url, PLAIN, ODD)
    assert isinstance(error, ExpertUnavailableError)
    assert reason_of(error) is Reason.EXPERT_UNAVAILABLE
    assert error.is_transient is is_transient


@pytest.mark.parametrize("scoring", ["logprobs", "json"])
@pytest.mark.parametrize("status", [400, 422])
async def test_an_endpoint_that_refuses_every_text_is_misconfigured(judges: Any, status: int, scoring: str) -> None:
    judge = serve(judges, lambda request: (status, openai_error("no")))
    error = await _error(judge.base_url, ODD, scoring=scoring)
    assert isinstance(error, ExpertUnavailableError)
    assert not error.is_transient
    assert ("scoring: json" in str(error)) == (scoring == "logprobs")


async def test_a_refusal_after_a_misconfiguration_was_mended_is_the_senders_again(judges: Any) -> None:
    is_mended = False
    refuse = refusing(WORD, (400, openai_error("no")))
    judge = serve(judges, lambda request: refuse(request) if is_mended else (400, b""))
    expert = OpenAIExpert(OpenAIExpertConfig(type="openai", base_url=judge.base_url, model="judge"))
    with pytest.raises(ExpertUnavailableError):
        await expert.score(ODD)
    is_mended = True
    assert (await expert.score(PLAIN)).p_unsafe == pytest.approx(0.8)
    with pytest.raises(ExpertVerdictError):
        await expert.score(ODD)
    await expert.aclose()


async def test_a_busy_endpoint_does_not_turn_a_senders_refusal_into_an_outage(judges: Any) -> None:
    # Whether it takes a harmless text cannot be found out now, so that the sender's text stays suspect.
    judge = serve(judges, lambda request: (400, b"") if WORD in json.dumps(request) else (429, b""))
    assert isinstance(await _error(judge.base_url, ODD), ExpertVerdictError)


@pytest.mark.parametrize("name", [name for name, ((status, _), _) in {**SENDERS, **OUTAGES}.items() if status != 200])
async def test_the_errors_are_ones_that_openais_own_client_reads(judges: Any, name: str) -> None:
    (status, body), _ = {**SENDERS, **OUTAGES}[name]
    judge = serve(judges, lambda request: (status, body))
    async with openai.AsyncOpenAI(base_url=judge.base_url, api_key="a-key", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(model="judge", messages=[{"role": "user", "content": "hello"}])
    assert raised.value.status_code == status
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        assert raised.value.code == body["error"].get("code")


# name -> (scoring, completion, words of the message)
NO_VERDICT: dict[str, tuple[str, dict[str, Any], str]] = {
    "declined": ("json", completion(None, refusal="I can't assist with that."), "declined"),
    "declined, with an answer": (
        "logprobs",
        completion("Yes", logprobs=logprobs(Yes=0.9, No=0.1), refusal="I can't assist."),
        "declined",
    ),
    "reasoning used up the answer": (
        "logprobs",
        completion(None, finish_reason="length", reasoning_content="The user wants"),
        "reasoning used up",
    ),
    "reasoning used up the answer, by vllm's newer name": (
        "json",
        completion(None, finish_reason="length", reasoning="The user wants"),
        "reasoning used up",
    ),
    "reasoning in the text used up the answer": (
        "json",
        completion("<think>\nThe user wants", finish_reason="length"),
        "reasoning used up",
    ),
    "reasoning token": (
        "logprobs",
        completion("<think>", logprobs=logprobs(**{"<think>": 0.999, "No": 0.0005}), finish_reason="length"),
        "reasoning used up",
    ),
    "cut off": ("json", completion('{"verdict": "safe", "conf', finish_reason="length"), "finish_reason length"),
    "refusal with the answer in its tail": (
        "logprobs",
        completion("I", logprobs=logprobs(I=0.9, No=0.06, Sorry=0.02), finish_reason="length"),
        "neither Yes nor No",
    ),
    "token ids": (
        "logprobs",
        completion("Yes", logprobs=logprobs(**{"token_id:9642": 0.9, "token_id:2822": 0.1})),
        "tokens as text",
    ),
    "no log-probabilities": ("logprobs", completion("Yes", finish_reason="length"), "Set scoring: json"),
    "no alternatives": (
        "logprobs",
        completion("Yes", logprobs={"content": [{"token": "Yes", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}),
        "Set scoring: json",
    ),
    "half of an answer": ("logprobs", completion("Y", logprobs=logprobs(Y=0.9, N=0.1)), "neither Yes nor No"),
    "nothing but markup": ("logprobs", completion("**", logprobs=logprobs(**{"**": 0.9, "No": 0.05})), "neither"),
    "percentage": ("json", completion('{"verdict": "safe", "confidence": 95}'), "confidence"),
    "two reasoning blocks": (
        "json",
        completion('<think>a</think>{"verdict": "safe", "confidence": 0.9}</think>{"verdict": "unsafe"}'),
        "agreed JSON",
    ),
    "parts that are not text": ("json", completion([{"type": "image_url", "image_url": {"url": "x"}}]), "agreed JSON"),
}

# name -> (scoring, completion, P(unsafe))
VERDICTS: dict[str, tuple[str, dict[str, Any], float]] = {
    "log-probabilities": ("logprobs", completion(logprobs=logprobs(Yes=0.6, No=0.3, I=0.05)), 2 / 3),
    "raw BPE": ("logprobs", completion(" Yes", logprobs=logprobs(ĠYes=0.6, ĠNo=0.2)), 0.75),
    "sentencepiece": ("logprobs", completion("No", logprobs=logprobs(**{"\u2581No": 0.6, "\u2581Yes": 0.2})), 0.25),
    "punctuation": ("logprobs", completion("No.", logprobs=logprobs(**{"No.": 0.6, "Yes.": 0.2})), 0.25),
    "null in the tail": ("logprobs", completion(logprobs=logprobs(Yes=0.6, No=0.2, Maybe=None)), 0.75),
    "the legacy form": (
        "logprobs",
        completion(logprobs={"tokens": ["Yes"], "top_logprobs": [{"Yes": -0.5, "No": -1.5}]}),
        1 / (1 + 2.718281828459045**-1),
    ),
    "only one answer shown": ("logprobs", completion(logprobs=logprobs(Yes=0.99)), 0.99),
    "the other answer is below all that is shown": (
        "logprobs",
        completion(logprobs=logprobs(No=0.9, Maybe=0.06, I=0.01)),
        0.01 / 0.91,
    ),
    "JSON": ("json", completion('{"verdict": "safe", "confidence": 0.7}'), 0.3),
    "JSON over several lines": ("json", completion('{\n  "verdict": "unsafe",\n  "confidence": 0.7\n}\n'), 0.7),
    "JSON in a fence": ("json", completion('```json\n{"verdict": "unsafe", "confidence": 0.7}\n```'), 0.7),
    "JSON behind reasoning": (
        "json",
        completion('<think>\nIt asks about bread.\n</think>\n\n{"verdict": "safe", "confidence": 0.7}'),
        0.3,
    ),
    "JSON in parts": ("json", completion([{"type": "text", "text": '{"verdict": "safe", "confidence": 0.7}'}]), 0.3),
    "JSON that is certain": ("json", completion('{"verdict": "unsafe", "confidence": 1}'), 1.0),
}


@pytest.mark.parametrize("name", NO_VERDICT)
async def test_an_answer_without_verdict_names_its_cause(judges: Any, name: str) -> None:
    scoring, body, words = NO_VERDICT[name]
    error = await _error(serve(judges, lambda request: (200, body)).base_url, PLAIN, scoring=scoring)
    assert isinstance(error, ExpertVerdictError)
    assert words in str(error)
    # A hint never asks for the scoring that is in use.
    assert f"scoring: {scoring}" not in str(error)


@pytest.mark.parametrize("name", VERDICTS)
async def test_an_answer_with_a_verdict_is_read_in_each_form(judges: Any, name: str) -> None:
    scoring, body, p_unsafe = VERDICTS[name]
    (score,) = await _ask(serve(judges, lambda request: (200, body)).base_url, PLAIN, scoring=scoring)
    assert score.p_unsafe == pytest.approx(p_unsafe)
    assert score.tokens == 322


@pytest.mark.parametrize("name", {**NO_VERDICT, **VERDICTS})
def test_the_completions_are_ones_of_the_openai_form(name: str) -> None:
    _, body, _ = {**NO_VERDICT, **VERDICTS}[name]
    # Servers differ from it in these fields; the rest is in its form.
    differing = {"parts that are not text", "JSON in parts", "the legacy form", "null in the tail"}
    if name not in differing:
        assert ChatCompletion.model_validate(body).choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        ({"Yes": 0.0, "No": -9999.0}, 0.999, 1 - 1e-7),
        ({"Yes": -0.02, "No": -float("inf")}, 0.97, 1 - 1e-7),
        ({"No": 0.0, "Yes": -9999.0}, 1e-7, 0.001),
    ],
)
async def test_an_impossible_answer_leaves_the_score_inside_zero_and_one(
    judges: Any, body: dict[str, float], least: float, most: float
) -> None:
    top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in body.items()]
    answer = completion(logprobs={"content": [top[0] | {"top_logprobs": top}]})
    (score,) = await _ask(serve(judges, lambda request: (200, answer)).base_url, PLAIN)
    assert least <= score.p_unsafe <= most


KEYS = [
    "error",
    "message",
    "code",
    "type",
    "param",
    "detail",
    "loc",
    "msg",
    "innererror",
    "metadata",
    "choices",
    "object",
]
KEYS += ["logprobs", "content", "top_logprobs", "token", "finish_reason", "refusal", "usage", "total_tokens", "text"]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["error", "text", "length", "400", "Yes"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


@given(json_values, st.sampled_from(["logprobs", "json"]))
def test_any_json_is_a_complaint_or_no_verdict(value: object, scoring: Any) -> None:
    for status in (None, 400, 403, 422, 500):
        assert isinstance(read_complaint(status, value).error(scoring=scoring), ExpertError)
    complaint = stated_error(value)
    assert complaint is None or isinstance(complaint.error(), ExpertError)
    with pytest.raises(ExpertVerdictError):
        read_completion(value, scoring)
    is_only_markup(value)
