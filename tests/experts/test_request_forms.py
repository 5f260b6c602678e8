"""Endpoints that take requests of one form only: it is found once, with a harmless text, and remembered."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import ExpertUnavailableError
from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.text.conversation import Conversation
from tests.support.endpoints import Reply, completion, logprobs, serve, verdict

TEXTS = [Conversation.from_text(f"canary text number {number}") for number in range(3)]


def _unsupported(parameter: str, message: str) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": parameter, "code": "unsupported_parameter"}
    return 400, {"error": error}


def _has_system(request: dict[str, Any]) -> bool:
    return any(message["role"] == "system" for message in request["messages"])


def reasoning_model(request: dict[str, Any]) -> Reply:
    """Take what OpenAI's reasoning models take."""
    if "max_tokens" in request:
        return _unsupported("max_tokens", "Unsupported parameter: use 'max_completion_tokens' instead.")
    if "temperature" in request:
        return _unsupported("temperature", "Unsupported value: only the default (1) value is supported.")
    if request.get("logprobs"):
        return _unsupported("logprobs", "This model does not support logprobs.")
    return 200, verdict(request)


def few_alternatives(request: dict[str, Any]) -> Reply:
    if request.get("top_logprobs", 0) > 5:
        return 400, {"error": {"object": "error", "type": "invalid_request_error", "message": "top_logprobs: 0 to 5"}}
    return 200, verdict(request)


def few_alternatives_in_tgi(request: dict[str, Any]) -> Reply:
    if request.get("top_logprobs", 0) > 5:
        return 422, {"error": "Input validation error: `top_n_tokens` must be <= 5", "error_type": "validation"}
    return 200, verdict(request)


def few_alternatives_in_fastapi(request: dict[str, Any]) -> Reply:
    if request.get("top_logprobs", 0) > 5:
        detail = {
            "type": "less_than_equal",
            "loc": ["body", "top_logprobs"],
            "msg": "Input should be less",
            "input": 20,
        }
        return 422, {"detail": [detail]}
    return 200, verdict(request)


def no_schema(request: dict[str, Any]) -> Reply:
    if request.get("response_format", {}).get("type") == "json_schema":
        return 400, {"error": {"message": "response_format json_schema is not known here", "code": "invalid_value"}}
    return 200, verdict(request)


def no_format(request: dict[str, Any]) -> Reply:
    if "response_format" in request:
        return 400, {"error": {"message": "Unrecognized request argument: response_format", "code": None}}
    return 200, verdict(request)


def gemma_in_vllm(request: dict[str, Any]) -> Reply:
    if _has_system(request):
        return 400, {"object": "error", "message": "System role not supported", "type": "BadRequestError", "code": 400}
    return 200, verdict(request)


def alternating_roles(request: dict[str, Any]) -> Reply:
    if _has_system(request):
        return 400, {"object": "error", "message": "Conversation roles must alternate user/assistant/...", "code": 400}
    return 200, verdict(request)


def gemma_in_sglang(request: dict[str, Any]) -> Reply:
    """Fail as a server does that lets the error of its template through."""
    return (500, b"Internal Server Error") if _has_system(request) else (200, verdict(request))


def old_gemma(request: dict[str, Any]) -> Reply:
    """Refuse three things in a row."""
    return gemma_in_vllm(request) if _has_system(request) else few_alternatives(request)


# name -> (scoring, endpoint, what the request in its final form has, what it has not)
ENDPOINTS: dict[str, tuple[str, Callable[[dict[str, Any]], Reply], dict[str, Any], set[str]]] = {
    "reasoning model": ("json", reasoning_model, {"max_completion_tokens": 1024}, {"max_tokens", "temperature"}),
    "few alternatives": ("logprobs", few_alternatives, {"top_logprobs": 5, "temperature": 0}, set()),
    "few alternatives, TGI": ("logprobs", few_alternatives_in_tgi, {"top_logprobs": 5}, set()),
    "few alternatives, FastAPI": ("logprobs", few_alternatives_in_fastapi, {"top_logprobs": 5}, set()),
    "no schema": ("json", no_schema, {"response_format": {"type": "json_object"}}, set()),
    "no format": ("json", no_format, {"max_tokens": 64}, {"response_format"}),
    "no system message": ("logprobs", gemma_in_vllm, {"top_logprobs": 20}, set()),
    "alternating roles": ("json", alternating_roles, {"temperature": 0}, set()),
    "a template that fails": ("logprobs", gemma_in_sglang, {"top_logprobs": 20}, set()),
    "several at once": ("logprobs", old_gemma, {"top_logprobs": 5}, set()),
}
FOLDED = {"no system message", "alternating roles", "a template that fails", "several at once"}


def _expert(base_url: str, **settings: Any) -> OpenAIExpert:
    return OpenAIExpert(OpenAIExpertConfig(type="openai", base_url=base_url, model="judge", **settings))


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_the_form_that_an_endpoint_takes_is_found_once_and_remembered(
    judges: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    scoring, endpoint, has, has_not = ENDPOINTS[name]
    judge = serve(judges, endpoint)
    expert = _expert(judge.base_url, scoring=scoring)
    identity = expert.identity
    with caplog.at_level(logging.WARNING, logger="ctd_guardrail"):
        first = await expert.score(TEXTS[0])
    assert first.p_unsafe == pytest.approx(0.8)
    assert first.attempts == len(judge.requests) > 1
    last = judge.requests[-1]
    assert {key: last[key] for key in has} == has
    assert not has_not & last.keys()
    assert _has_system(last) == (name not in FOLDED)
    # The instruction is asked in either form.
    assert "You judge conversations" in json.dumps(last["messages"])
    for text in TEXTS[1:]:
        assert (await expert.score(text)).attempts == 1
    assert [{**request, "messages": 0} for request in judge.requests[-2:]] == [{**last, "messages": 0}] * 2
    # Found with a harmless text: the sender's own is sent in the first form and in the last.
    assert sum("canary" in json.dumps(request) for request in judge.requests) == 4
    assert expert.identity == identity
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "canary" not in caplog.text
    await expert.aclose()


@pytest.mark.parametrize("mark", ["\n", '"', "**", "\u0120", "\u010a"])
async def test_a_mark_in_front_of_the_answer_is_read_past(judges: Any, mark: str) -> None:
    def marked(request: dict[str, Any]) -> Reply:
        body = completion(f"{mark}No", finish_reason="length")
        tokens = [logprobs(**{mark: 0.9, "Yes": 0.08, "No": 0.01}), logprobs(No=0.7, Yes=0.2)]
        content = [token["content"][0] for token in tokens][: request["max_tokens"]]
        body["choices"][0]["logprobs"] = {"content": content, "refusal": None}
        return 200, body

    judge = serve(judges, marked)
    expert = _expert(judge.base_url)
    scores = [await expert.score(text) for text in TEXTS]
    await expert.aclose()
    assert [score.p_unsafe for score in scores] == pytest.approx([2 / 9] * 3)
    assert [score.attempts for score in scores] == [2, 1, 1]
    assert [request["max_tokens"] for request in judge.requests] == [1, 4, 4, 4]


async def test_many_first_texts_at_once_find_the_form_once(judges: Any) -> None:
    judge = serve(judges, few_alternatives)
    expert = _expert(judge.base_url)
    scores = await asyncio.gather(*(expert.score(text) for text in TEXTS * 4))
    await expert.aclose()
    assert [score.p_unsafe for score in scores] == pytest.approx([0.8] * 12)
    assert sum("Good morning." in json.dumps(request) for request in judge.requests) == 2
    assert sum(score.attempts for score in scores) == len(judge.requests)


async def test_a_model_without_log_probabilities_is_refused_with_a_hint(judges: Any) -> None:
    expert = _expert(serve(judges, reasoning_model).base_url)
    with pytest.raises(ExpertUnavailableError, match=r"logprobs.*set scoring: json") as raised:
        await expert.score(TEXTS[0])
    await expert.aclose()
    assert not raised.value.is_transient


async def test_a_fault_that_passes_folds_nothing(judges: Any) -> None:
    faults = iter([True, True])
    judge = serve(judges, lambda request: (500, b"") if next(faults, False) else (200, verdict(request)))
    expert = _expert(judge.base_url)
    with pytest.raises(ExpertUnavailableError) as raised:
        await expert.score(TEXTS[0])
    assert raised.value.attempts == 4
    assert [_has_system(request) for request in judge.requests] == [True, True, False, True]
    assert (await expert.score(TEXTS[0])).attempts == 1
    assert _has_system(judge.requests[-1])
    await expert.aclose()


async def test_an_endpoint_that_is_down_is_asked_about_its_form_once(judges: Any) -> None:
    judge = serve(judges, lambda request: (500, b""))
    expert = _expert(judge.base_url)
    for _ in range(3):
        with pytest.raises(ExpertUnavailableError, match="HTTP 500") as raised:
            await expert.score(TEXTS[0])
        assert raised.value.is_transient
    await expert.aclose()
    assert len(judge.requests) == 5


async def test_the_configuration_may_fold_the_instruction(judges: Any) -> None:
    judge = serve(judges, gemma_in_vllm)
    expert = _expert(judge.base_url, system_role="fold")
    assert (await expert.score(TEXTS[0])).attempts == 1
    (request,) = judge.requests
    (message,) = request["messages"]
    assert message["content"].startswith("You judge conversations")
    assert "canary" in message["content"]
    assert expert.identity == f"{_expert(judge.base_url).identity}:folded"
    await expert.aclose()
