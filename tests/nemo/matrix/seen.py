"""From what a client of NeMo Guardrails receives to the word of the matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ctd_guardrail.decision import Reason
from tests.nemo.matrix.entry_points import Seen

__all__ = ["seen_in_check", "seen_in_exception", "seen_in_stream", "seen_in_text"]

_TEXTS: Final = {
    "the main LLM's answer": Seen.ANSWER,
    "I'm sorry, I can't respond to that.": Seen.REFUSED,
    "I'm sorry, but I cannot respond right now: messages cannot be checked. Please try again later.": Seen.UNAVAILABLE,
    # What IORails says for every rail that broke.
    "I'm sorry, an internal error has occurred.": Seen.UNAVAILABLE,
}
_EXCEPTIONS: Final = {
    "CtdCheckInputException": Seen.REFUSED,
    "CtdGuardUnavailableException": Seen.UNAVAILABLE,
}


def seen_in_text(text: str) -> Seen:
    """Read an assistant's message."""
    assert text in _TEXTS, text
    return _TEXTS[text]


def seen_in_stream(text: str) -> Seen:
    """Read what IORails streams: it ends a refused stream with an error that names the reason."""
    _, blocked, reason = text.partition("Blocked by input rails: ")
    if not blocked:
        return seen_in_text(text)
    return Seen.UNAVAILABLE if Reason(re.split(r'["\s]', reason)[0]).is_failure else Seen.REFUSED


def seen_in_check(result: Any) -> Seen:
    """Read the result of ``check_async``, or the body of ``/v1/checks``."""
    if isinstance(result, Mapping):
        status, content = result["status"], result["content"]
    else:
        status, content = result.status.value, result.content
    return Seen.PASSED if status == "passed" else seen_in_text(content)


def seen_in_exception(message: Mapping[str, Any]) -> Seen:
    """Read a message that may hold an exception of a rail."""
    return (
        _EXCEPTIONS[message["content"]["type"]] if message["role"] == "exception" else seen_in_text(message["content"])
    )
