"""Endpoints in the forms of real servers: what they take, what they refuse, and in which words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from tests.support.faulty_expert import Judge, Judges, Writer, answer

__all__ = [
    "OUTAGES",
    "SENDERS",
    "WORD",
    "Reply",
    "completion",
    "logprobs",
    "openai_error",
    "refusing",
    "serve",
    "verdict",
]

Reply = tuple[int, object]

# In the texts that an endpoint refuses, and in the words with which it does.
WORD = "canary-marker"
VERDICT = json.dumps({"verdict": "unsafe", "confidence": 0.8})


def logprobs(**probabilities: float | None) -> dict[str, Any]:
    """Return the log-probabilities of a first token as OpenAI's endpoint gives them; None: null."""
    top = [
        {"token": token, "logprob": p if p is None else math.log(p), "bytes": list(token.encode())}
        for token, p in probabilities.items()
    ]
    return {"content": [top[0] | {"top_logprobs": top}], "refusal": None}


def completion(
    content: object = "Yes", *, logprobs: object = None, finish_reason: str = "stop", **message: object
) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None} | message,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }
    usage = {"prompt_tokens": 320, "completion_tokens": 2, "total_tokens": 322}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "judge",
        "choices": [choice],
        "usage": usage,
    }


def verdict(request: dict[str, Any]) -> dict[str, Any]:
    """Return a good answer in the form that was asked for."""
    if request.get("logprobs"):
        return completion(logprobs=logprobs(Yes=0.8, No=0.2), finish_reason="length")
    return completion(VERDICT)


def serve(judges: Judges, reply: Callable[[dict[str, Any]], Reply]) -> Judge:
    """Start an endpoint that answers each request by what stands in it."""

    async def behaviour(writer: Writer) -> None:
        status, body = reply(judge.requests[-1])
        await answer(body, status=status)(writer)

    judge = judges.start(behaviour)
    return judge


def refusing(word: str, refusal: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Return an endpoint that refuses conversations with a word and judges all others."""

    def reply(request: dict[str, Any]) -> Reply:
        return refusal if word in json.dumps(request["messages"]) else (200, verdict(request))

    return reply


def openai_error(message: str, **fields: object) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields}


AZURE_FILTER = openai_error(
    f"The response was filtered: {WORD}",
    type=None,
    param="prompt",
    code="content_filter",
    innererror={"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
)
OPENAI_TOO_LONG = openai_error(
    f"This model's maximum context length is 8192 tokens. Your messages resulted in 9000 tokens: {WORD}",
    param="messages",
    code="context_length_exceeded",
)
# name -> (the endpoint's answer, words of the message); the sender provokes all of them.
SENDERS: dict[str, tuple[Reply, str]] = {
    "azure filter": ((400, AZURE_FILTER), "content filter"),
    "azure filter without code": (
        (400, openai_error("stopped", innererror={"code": "ResponsibleAIPolicyViolation"})),
        "content filter",
    ),
    "openai policy": ((400, openai_error("not allowed", code="content_policy_violation")), "content filter"),
    "openrouter moderation": (
        (403, {"error": {"code": 403, "message": "flagged", "metadata": {"flagged_input": WORD, "reasons": ["x"]}}}),
        "content filter",
    ),
    "openai too long": ((400, OPENAI_TOO_LONG), "longer"),
    "vllm too long": (
        (
            400,
            {
                "object": "error",
                "message": "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        "longer",
    ),
    "vllm too long, in terms of max_tokens": (
        (
            400,
            {
                "error": {
                    "message": "'max_tokens' is too large: 64. This model's maximum context length is 4096 tokens "
                    "and your request has 4090 input tokens",
                    "type": "BadRequestError",
                    "param": "max_tokens",
                    "code": 400,
                }
            },
        ),
        "longer",
    ),
    "sglang too long": (
        (
            400,
            {
                "object": "error",
                "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        "longer",
    ),
    "llama.cpp too long": (
        (400, {"error": {"code": 400, "message": "the request is large", "type": "exceed_context_size_error"}}),
        "longer",
    ),
    "tgi too long": (
        (
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
                "error_type": "validation",
            },
        ),
        "longer",
    ),
    "a proxy's limit on bodies": ((413, b"<html>413 Request Entity Too Large</html>"), "longer"),
    "fastapi validation": (
        (422, {"detail": [{"type": "value_error", "loc": ["body", "messages", 1], "msg": "odd", "input": WORD}]}),
        "refused the request",
    ),
    "a bare refusal": ((400, b"Bad Request"), "refused the request"),
    "an unknown refusal": ((400, openai_error(f"could not process {WORD}")), "refused the request"),
    "a refusal that quotes the sender's talk of parameters": (
        (400, openai_error("unsupported: max_tokens, temperature, logprobs, system role")),
        "refused the request",
    ),
    "filtered answer": ((200, completion("", finish_reason="content_filter")), "finish_reason content_filter"),
    "half of a filtered answer": (
        (200, completion("Yes", logprobs=logprobs(Yes=0.9, No=0.1), finish_reason="content_filter")),
        "finish_reason content_filter",
    ),
    "filter inside HTTP 200": ((200, AZURE_FILTER), "content filter"),
    "too long inside HTTP 200": ((200, OPENAI_TOO_LONG), "longer"),
    "an error without status inside HTTP 200": ((200, {"error": {"message": WORD}}), "refused the request"),
}
# name -> (the endpoint's answer, whether another attempt may help); no sender provokes them.
OUTAGES: dict[str, tuple[Reply, bool]] = {
    "wrong key": ((401, openai_error("bad key", code="invalid_api_key")), False),
    "no access": ((403, openai_error("no access", type="permission_error")), False),
    "no such model": ((404, openai_error("no such model", param="model", code="model_not_found")), False),
    "no such model, as HTTP 400": ((400, openai_error("no such model", code="model_not_found")), False),
    "too busy": ((429, openai_error("slow down", type="requests", code="rate_limit_exceeded")), True),
    "gateway": ((502, b"<html>Bad Gateway</html>"), True),
    "rate limit inside HTTP 200": ((200, {"error": {"message": "slow down", "code": 429}}), True),
    "rate limit inside HTTP 200, as text": ((200, {"error": {"message": "slow down", "code": "429"}}), True),
    "rate limit inside HTTP 200, by name": (
        (200, {"error": {"message": "slow down", "type": "rate_limit_error"}}),
        True,
    ),
    "overload inside HTTP 200": ((200, {"error": {"message": "busy", "type": "overloaded_error"}}), True),
    "wrong key inside HTTP 200": ((200, {"error": {"message": "bad key", "type": "authentication_error"}}), False),
    "failure inside a choice": (
        (
            200,
            {
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": ""},
                        "finish_reason": "error",
                        "error": {"code": 502, "message": "provider failed"},
                    }
                ]
            },
        ),
        True,
    ),
    "vllm's own error object inside HTTP 200": (
        (200, {"object": "error", "message": "engine died", "type": "InternalServerError", "code": 500}),
        True,
    ),
}
