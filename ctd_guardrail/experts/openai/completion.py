"""From a chat completion to a score, or to the reason why there is none."""

from __future__ import annotations

from typing import Any, Final, Literal

from ctd_guardrail.errors import ExpertVerdictError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.experts.verdict import is_markup, p_unsafe_from_json, p_unsafe_from_logprobs

__all__ = ["is_only_markup", "read_completion"]

# Where servers put what a model thought before it answered.
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
_THOUGHT: Final = "<think>"


def read_completion(answer: object, scoring: Literal["logprobs", "json"]) -> ExpertScore:
    """Return the score that a chat completion holds.

    Args:
        answer: The parsed body.
        scoring: How to read it.

    Raises:
        ExpertVerdictError: It holds no verdict; the message names the cause that the endpoint states.
    """
    choice = _first(_get(answer, "choices"))
    if not isinstance(choice, dict):
        raise ExpertVerdictError(
            "the expert's answer is not a chat completion",
            hint="Point expert.base_url at an OpenAI-compatible endpoint",
        )
    _check_whole(choice, scoring)
    try:
        p_unsafe = _p_unsafe(choice, scoring)
    except ExpertVerdictError:
        _check_length(choice, scoring)
        raise
    tokens = _get(_get(answer, "usage"), "total_tokens")
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    return ExpertScore(p_unsafe, tokens=tokens if counted else None)


def _p_unsafe(choice: dict[str, Any], scoring: Literal["logprobs", "json"]) -> float:
    if scoring == "json":
        return p_unsafe_from_json(_text(_get(choice.get("message"), "content")))
    logprobs = choice.get("logprobs")
    positions = _get(logprobs, "content")
    if not isinstance(positions, list) or not positions:
        return p_unsafe_from_logprobs(_legacy(logprobs))
    # Some models begin with a newline, a quote or an asterisk. The answer is the first token behind these.
    behind = (position for position in positions if not is_markup(_get(position, "token")))
    return p_unsafe_from_logprobs(_get(next(behind, positions[0]), "top_logprobs"))


def is_only_markup(answer: object) -> bool:
    """Return whether a chat completion with log-probabilities ends before the token that decides."""
    positions = _get(_get(_first(_get(answer, "choices")), "logprobs"), "content")
    if not isinstance(positions, list) or not positions:
        return False
    return all(is_markup(_get(position, "token")) for position in positions)


def _check_whole(choice: dict[str, Any], scoring: str) -> None:
    """Refuse an answer that a filter or the model itself has cut off or withheld."""
    if choice.get("finish_reason") == "content_filter":
        raise ExpertVerdictError(
            "the endpoint's content filter stopped the expert's answer (finish_reason content_filter)",
            hint="Switch the content filter of the judge's deployment off, or leave expert_bad_verdict at block",
        )
    if _get(choice.get("message"), "refusal"):
        raise ExpertVerdictError(
            "the expert declined to answer (refusal)",
            hint="Use a model that judges such texts"
            if scoring == "logprobs"
            else "Use a model that judges such texts, or one with log-probabilities and scoring: logprobs",
        )


def _check_length(choice: dict[str, Any], scoring: str) -> None:
    """Say that an answer without verdict was cut off at its limit, if it was, and by what."""
    if choice.get("finish_reason") != "length":
        return
    message = choice.get("message")
    content = _get(message, "content")
    has_thought = any(_get(message, field) for field in _REASONING_FIELDS)
    if has_thought or (isinstance(content, str) and content.lstrip().startswith(_THOUGHT)):
        raise ExpertVerdictError(
            "reasoning used up the expert's answer (finish_reason length)",
            hint="Switch the model's reasoning off at the server, or use a model without it",
        ) from None
    if scoring == "json":  # the other form asks for one token, so that it always ends at its limit
        raise ExpertVerdictError(
            "the expert's answer was cut off (finish_reason length)",
            hint="Use a model that answers with the verdict and nothing else",
        ) from None


def _text(content: object) -> object:
    """Return a message's text: some servers send it in parts."""
    if not isinstance(content, list):
        return content
    parts = [_get(part, "text") for part in content if _get(part, "type") == "text"]
    is_text = len(parts) == len(content) and all(isinstance(part, str) for part in parts)
    return "".join(parts) if is_text else None


def _legacy(logprobs: object) -> object:
    """Return the alternatives in the form of the older completions endpoint: one mapping of tokens a position."""
    alternatives = _first(_get(logprobs, "top_logprobs"))
    if not isinstance(alternatives, dict):
        return None
    return [{"token": token, "logprob": logprob} for token, logprob in alternatives.items()]


def _get(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _first(value: object) -> Any:
    return value[0] if isinstance(value, list) and value else None
