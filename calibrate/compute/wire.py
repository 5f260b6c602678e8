"""Conversations and errors as JSON text, for the transfer between actors."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ctd_guardrail import errors
from ctd_guardrail.errors import CtdError
from ctd_guardrail.text.conversation import Conversation, Message

__all__ = ["from_text", "to_error", "to_failure", "to_text"]


def to_text(conversations: Sequence[Conversation]) -> str:
    """Return conversations as text. All characters are escaped, because UTF-8 cannot encode a lone surrogate."""
    return json.dumps([[(each.role, each.content, each.is_text) for each in one.messages] for one in conversations])


def from_text(text: str) -> list[Conversation]:
    """Return the conversations that :func:`to_text` wrote."""
    return [Conversation(tuple(Message(*each) for each in one)) for one in json.loads(text)]


def to_failure(error: CtdError) -> str:
    """Return an error as text. Errors hold no text of conversations."""
    return json.dumps([type(error).__name__, error.problem, error.hint])


def to_error(failure: str) -> CtdError:
    """Return the error that :func:`to_failure` wrote."""
    kind, problem, hint = json.loads(failure)
    error: CtdError = getattr(errors, kind)(problem, hint=hint)
    return error
