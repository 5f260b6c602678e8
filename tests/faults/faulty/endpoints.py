"""Endpoints in the forms of real servers: what they take, what they refuse, and in which words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from faulty.expert import Judge, Judges, Writer, answer

__all__ = ["Reply", "completion", "logprobs", "refusing", "serve"]

Reply = tuple[int, object]

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
