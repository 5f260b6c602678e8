"""What an endpoint complains about, and who provoked it.

Endpoints state the same error in many ways: by HTTP status, by an error object, by an error object inside HTTP 200, or
in words alone. This module finds who can provoke the error. An error that the sender of a text can provoke is never an
outage, because the operator may let inputs pass while the expert is down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import httpx

from ctd_guardrail.errors import ExpertError, ExpertUnavailableError, ExpertVerdictError

__all__ = ["Cause", "Complaint", "parsed", "read_complaint", "stated_error"]

_LONGEST_MESSAGE: Final = 2000
_TRANSIENT: Final = frozenset(
    {httpx.codes.REQUEST_TIMEOUT, httpx.codes.CONFLICT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS}
)
# Codes and types, lower case, without anything but letters.
_FILTER_NAMES: Final = ("contentfilter", "contentpolicy", "responsibleaipolicy")
_LENGTH_NAMES: Final = ("contextlength", "contextwindow", "contextsize", "stringabovemaxlength", "requesttoolarge")
_TOO_LONG: Final = re.compile(
    r"context[ _](length|window|size)|context .{0,20}overflow|maximum (prompt|input|sequence|model) length"
    r"|(prompt|input|request) (is )?too long|too many (input )?tokens|longer than the maximum"
    r"|reduce the length of the (messages|input|prompt)|token count .{0,40}exceeds"
    r"|(inputs?|prompt)`? tokens? .{0,80}(exceed|must be|longer)",
    re.IGNORECASE,
)
# The names, in messages, of the parts of a request that can be left out or changed.
_PARTS: Final = {
    part: re.compile(words, re.IGNORECASE)
    for part, words in {
        "system": r"\bsystem\b.*\b(role|message|prompt|instruction)|\broles?\b.*\b(alternate|supported)",
        "max_tokens": r"\bmax_(completion_)?tokens\b",
        "temperature": r"\btemperature\b",
        "top_logprobs": r"\btop_?(logprobs|n_tokens)\b",
        "logprobs": r"\blog[ _-]?prob(s|abilities)\b",
        "response_format": r"\bresponse_format\b|\bjson_(schema|object)\b|\bguided_|\bgrammar\b",
    }.items()
}
_PARAMETERS: Final = frozenset({*_PARTS, "max_completion_tokens", "top_n_tokens", "model"}) - {"system"}
# Errors inside HTTP 200 without a status: the meaning of their type or code.
_STATUS_BY_NAME: Final = (
    ("ratelimit", 429),
    ("overloaded", 503),
    ("unavailable", 503),
    ("timeout", 504),
    ("servererror", 500),
    ("internal", 500),
    ("apierror", 500),
    ("authentication", 401),
    ("permission", 403),
    ("notfound", 404),
    ("badrequest", 400),
    ("invalidrequest", 400),
    ("unprocessable", 422),
    ("validation", 422),
)


class Cause(Enum):
    """Who or what provoked an endpoint's error."""

    FILTERED = "the endpoint's content filter refused the conversation"
    TOO_LONG = "the conversation is longer than the endpoint reads"
    REFUSED = "the endpoint refused the request"
    PARAMETER = "the endpoint does not take this form of request"
    FAILED = "the endpoint failed, or refuses every request"


_HINTS: Final = {
    Cause.FILTERED: "Switch the content filter of the judge's deployment off, or leave expert_bad_verdict at block",
    Cause.TOO_LONG: "Serve the judge with a longer context, or lower the policy's max_tokens",
}
_STATUS_HINTS: Final = {
    401: "Check the key in the variable that expert.api_key_env names",
    403: "Check the key in the variable that expert.api_key_env names",
    404: "Check expert.base_url (it ends with the version, as in /v1) and expert.model",
    429: "The endpoint limits the rate: lower alpha or max_concurrency, or raise its limit",
    500: "Look into the endpoint's log. If the model takes no system message, set system_role: fold",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """An endpoint's error.

    Attributes:
        status: HTTP status, or the one that an error object inside HTTP 200 states; None: it states none.
        cause: Who or what provoked it.
        parts: Parts of the request that it names, such as ``temperature``.
        retry_after_s: Seconds after which the endpoint wants to be asked again; None if it states none.
    """

    status: int | None
    cause: Cause
    parts: frozenset[str] = frozenset()
    retry_after_s: float | None = None

    @property
    def may_be_the_form(self) -> bool:
        """Whether another form of the same request may be taken."""
        return self.is_failure or self.cause in {Cause.PARAMETER, Cause.REFUSED}

    @property
    def is_failure(self) -> bool:
        """Whether it is the bare HTTP 500 that some servers answer when their chat template raises."""
        return self.cause is Cause.FAILED and self.status == httpx.codes.INTERNAL_SERVER_ERROR

    def error(self, *, subject: str = "the expert", scoring: str = "", is_every: bool = False) -> ExpertError:
        """Return the error to raise.

        Args:
            subject: Who complains, for the message.
            scoring: The form of answer that was asked for.
            is_every: Whether the endpoint refuses harmless texts in the same way.
        """
        status = "an error" if self.status is None else f"HTTP {self.status}"
        problem = f"{subject} answered with {status}"
        if self.cause in {Cause.FILTERED, Cause.TOO_LONG}:
            return ExpertVerdictError(f"{problem}: {self.cause.value}", hint=_HINTS[self.cause])
        if self.cause is not Cause.FAILED and is_every:
            return ExpertUnavailableError(
                f"{problem}: {Cause.PARAMETER.value}", hint=self._form_hint(scoring), is_transient=False
            )
        if self.cause is not Cause.FAILED:
            return ExpertVerdictError(f"{problem}: {self.cause.value}", hint=self._form_hint(scoring))
        is_transient = self.status is None or self.status in _TRANSIENT or self.status >= 500  # noqa: PLR2004
        return ExpertUnavailableError(
            problem,
            # The settings that the hints name are those of the expert that has a scoring.
            hint=_STATUS_HINTS.get(self.status or 0, "") if scoring else "",
            is_transient=is_transient,
            retry_after_s=self.retry_after_s,
        )

    def _form_hint(self, scoring: str) -> str:
        named = f"It names {', '.join(sorted(self.parts))}. " if self.parts else ""
        if scoring == "logprobs":
            return f"{named}If the model gives no log-probabilities, set scoring: json"
        if scoring == "json":
            return f"{named}Check that the endpoint takes chat completions of this model"
        return f"{named}Check the model's parameters in the NeMo configuration"


def read_complaint(status: int | None, payload: object, retry_after_s: float | None = None) -> Complaint:
    """Return the complaint of an error.

    Args:
        status: Its HTTP status; None: it has none.
        payload: The parsed body, or any other value if it is no JSON. Only known words in it are looked for: its
            message may quote the conversation.
        retry_after_s: As the endpoint states it.
    """
    error = _error_object(payload)
    message = _message(error)
    names = [re.sub(r"[^a-z]", "", name.lower()) for name in _names(error)]
    parameter = _parameter(error)
    parts = frozenset({parameter} if parameter else {part for part, words in _PARTS.items() if words.search(message)})
    cause = _cause(status, error, names, message)
    if cause is Cause.REFUSED and parameter:
        cause = Cause.PARAMETER
    return Complaint(status, cause, parts, retry_after_s)


def stated_error(answer: object) -> Complaint | None:
    """Return the error that an answer with HTTP 200 states, if it states one."""
    if not isinstance(answer, Mapping):
        return None
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (answer, first):
        if isinstance(holder, Mapping) and holder.get("error"):
            return read_complaint(_stated_status(_error_object(holder)), holder)
    return read_complaint(_stated_status(answer), answer) if answer.get("object") == "error" else None


def _cause(status: int | None, error: Mapping[str, Any], names: list[str], message: str) -> Cause:
    metadata = error.get("metadata")
    is_flagged = isinstance(metadata, Mapping) and "flagged_input" in metadata
    if is_flagged or any(known in name for name in names for known in _FILTER_NAMES):
        return Cause.FILTERED
    is_refusal = status is None or status in {httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY}
    is_worded = is_refusal or status == httpx.codes.INTERNAL_SERVER_ERROR
    is_long = any(known in name for name in names for known in _LENGTH_NAMES)
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or is_long or (is_worded and _TOO_LONG.search(message)):
        return Cause.TOO_LONG
    if is_refusal:
        is_model = any("modelnotfound" in name for name in names)
        return Cause.FAILED if is_model else Cause.REFUSED
    return Cause.FAILED


def _error_object(payload: object) -> Mapping[str, Any]:
    if not isinstance(payload, Mapping):
        return {}
    error = payload.get("error")
    if isinstance(error, Mapping):
        return error
    # TGI and llama-cpp-python state a text here, and its kind beside it; vLLM stated all of it at the top.
    return {**payload, "message": error} if isinstance(error, str) else payload


def _names(error: Mapping[str, Any]) -> Iterator[str]:
    inner = error.get("innererror")
    for holder in (error, inner if isinstance(inner, Mapping) else {}):
        yield from (str(holder[key]) for key in ("code", "type", "error_type") if isinstance(holder.get(key), str))


def _message(error: Mapping[str, Any]) -> str:
    texts = [error.get("message"), *(detail.get("msg") for detail in _details(error))]
    return " ".join(text[:_LONGEST_MESSAGE] for text in texts if isinstance(text, str)).replace("\n", " ")


def _parameter(error: Mapping[str, Any]) -> str | None:
    """Return the parameter of the request that an error points at. A sender cannot write this field."""
    places = [error.get("param"), *(place for detail in _details(error) for place in _location(detail))]
    names = [place.split(".")[0].split("[")[0] for place in places if isinstance(place, str)]
    known = next((name for name in names if name in _PARAMETERS), None)
    return {"max_completion_tokens": "max_tokens", "top_n_tokens": "top_logprobs"}.get(known or "", known)


def _details(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the errors of a FastAPI server, which states them under ``detail``."""
    details = error.get("detail")
    return [detail for detail in details if isinstance(detail, Mapping)] if isinstance(details, list) else []


def _location(detail: Mapping[str, Any]) -> list[object]:
    location = detail.get("loc")
    return location if isinstance(location, list) else []


def _stated_status(error: Mapping[str, Any]) -> int | None:
    for key in ("code", "status", "status_code"):
        value = error.get(key)
        if isinstance(value, int | str) and re.fullmatch(r"[45][0-9]{2}", str(value)):
            return int(value)
    names = [re.sub(r"[^a-z]", "", name.lower()) for name in _names(error)]
    return next((status for known, status in _STATUS_BY_NAME for name in names if known in name), None)


def parsed(body: bytes) -> object:
    """Return the JSON of an error's body; None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
