"""What is screened: a conversation as plain text messages.

Online (events of a guardrails engine, HTTP bodies) and offline (rows of a data file) conversations pass through
:meth:`Conversation.from_messages`, so that the probes see the same characters in both. Two rules decide what
they see:

- System prompts are the operator's own words and the same for every user: they are left out.
- Tool results are text that the operator did not write: they are screened as if a user had said them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ctd_guardrail.errors import InputError, NonTextError

__all__ = ["Conversation", "Message", "Role"]

Role = Literal["user", "assistant"]

_ROLES: Final[Mapping[str, Role | None]] = {
    "user": "user",
    "assistant": "assistant",
    "bot": "assistant",
    "tool": "user",
    "function": "user",
    "system": None,
    "developer": None,
    # NeMo Guardrails passes variables and events as messages of these roles; they hold no text of the user.
    "context": None,
    "event": None,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks.
        content: The text, unchanged.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An immutable sequence of turns, oldest first.

    Attributes:
        messages: The turns. Neighbours of the same role are allowed.
    """

    messages: tuple[Message, ...]

    @classmethod
    def from_text(cls, text: str) -> Conversation:
        """Build the conversation that consists of one user turn."""
        return cls((Message("user", text),))

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]]) -> Conversation:
        """Build a conversation from chat messages in the OpenAI form.

        Args:
            messages: Mappings with ``role`` and ``content``. ``content`` is a string, None (an assistant turn that
                only calls tools), or a list of parts of which every one is ``{"type": "text", "text": ...}``.

        Returns:
            The conversation, without system prompts and without turns that have no content at all.

        Raises:
            NonTextError: A part is an image, audio, a file, or anything else that is not text.
            InputError: A message is not a mapping, or its role is unknown.
        """
        turns: list[Message] = []
        for number, message in enumerate(messages, start=1):
            if not isinstance(message, Mapping):
                raise InputError(f"message {number} is a {type(message).__name__}, not a mapping with role and content")
            name = message.get("role")
            if not isinstance(name, str) or name not in _ROLES:
                raise InputError(
                    f"message {number} has an unknown role",
                    hint=f"Use one of {', '.join(sorted(_ROLES))}",
                )
            role = _ROLES[name]
            if role is None:
                continue
            text = _flatten(message.get("content"), number)
            if text is not None:
                turns.append(Message(role, text))
        return cls(tuple(turns))

    @property
    def is_blank(self) -> bool:
        """Whether no turn holds a visible character: there is nothing to screen."""
        return not any(message.content.strip() for message in self.messages)

    def alternating(self) -> tuple[Message, ...]:
        """Return the turns with neighbours of one role joined, beginning with a user turn.

        Chat templates of several model families refuse anything else.
        """
        merged: list[Message] = []
        for message in self.messages:
            if merged and merged[-1].role == message.role:
                merged[-1] = Message(message.role, f"{merged[-1].content}\n\n{message.content}")
            else:
                merged.append(message)
        if merged and merged[0].role != "user":
            merged.insert(0, Message("user", ""))
        return tuple(merged)

    def plain_text(self) -> str:
        """Return the text for models without a chat template.

        A lone user turn is its own text; longer conversations are one ``role: text`` line a turn.
        """
        if len(self.messages) == 1 and self.messages[0].role == "user":
            return self.messages[0].content
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)

    def digest(self) -> str:
        """Return a SHA-256 of roles and texts, in hexadecimal: the key under which results are cached."""
        canonical = json.dumps([[m.role, m.content] for m in self.messages], ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _flatten(content: object, number: int) -> str | None:
    """Return the text of a message's content, or None where it has none."""
    if content is None:
        return None
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts: list[str] = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                raise NonTextError(
                    f"message {number} holds a part that is not text",
                    hint="The probes read text only; on_failure decides what happens to such a message",
                )
        return "\n".join(texts)
    raise NonTextError(f"the content of message {number} is a {type(content).__name__}, not text")
