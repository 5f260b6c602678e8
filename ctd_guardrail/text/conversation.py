"""The conversation that is screened, as plain text messages.

All conversations pass through :meth:`Conversation.from_messages`: events of a guardrails engine, HTTP bodies and rows
of a data file. So the probes see the same characters online and offline. Three rules apply:

- System prompts are left out: they are the operator's own text, and the same for every user.
- Tool results are screened like messages of a user: the operator did not write them.
- The name of a speaker and the tool calls of a message belong to its text (:mod:`ctd_guardrail.text.message_text`).

Texts are normalised for judging (:mod:`ctd_guardrail.text.normalise`); the main LLM gets them unchanged.

Each decision is about one *unit*: one turn of the user, with the context that the policy was calibrated with.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Literal

from ctd_guardrail.errors import InputError, NonTextError
from ctd_guardrail.text.message_text import size_of, texts_of
from ctd_guardrail.text.normalise import normalise

__all__ = ["RECEIPT", "Context", "Conversation", "History", "Message", "NonText", "Role", "Turn"]

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


NonText = Literal["refuse", "drop", "mark"]
"""What to do with content that is not text: raise, leave it out, or put a note in its place."""

RECEIPT: Final = "ctd_receipt"
"""Key of a message's ``metadata`` that holds the receipt of a refusal."""

_MARK: Final = "[content that is not text]"
_FRAME: Final = 16
# Below this many characters normalising takes less than a thread hop is worth: 1 to 8 ms.
_INLINE_CHARACTERS: Final = 16_384


class Context(StrEnum):
    """Context of a unit beside the user's turn: none, or the conversation up to it."""

    LAST_TURN = "last_turn"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: Role of the speaker.
        content: The text, normalised.
        is_text: Whether the message was text alone. False if a note stands for content that is not text.
        receipt: Signature by which an assistant's message proves that this guard wrote it; None: no signature.
    """

    role: Role
    content: str
    is_text: bool = True
    receipt: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages of a user up to the assistant's answer, and this answer.

    Attributes:
        question: The user's messages, one or several in a row. The last turn has no answer yet. An assistant's
            message in it is the start of the answer and belongs to the question.
        answer: The assistant's messages; none in the last turn.
    """

    question: tuple[Message, ...]
    answer: tuple[Message, ...] = ()

    @property
    def is_blank(self) -> bool:
        """Whether the question holds no visible character: there is nothing to screen."""
        return not any(message.content.strip() for message in self.question)

    @property
    def is_text(self) -> bool:
        """Whether the question is text alone."""
        return all(message.is_text for message in self.question)

    @property
    def asks(self) -> bool:
        """Whether a message of the user in it has a visible character."""
        return any(message.role == "user" and message.content.strip() for message in self.question)

    def ended(self) -> Turn:
        """Return the last turn of a conversation with what follows the user's messages as its answer."""
        return _split((*self.question, *self.answer))


@dataclass(frozen=True, slots=True)
class Conversation:
    """An immutable sequence of messages, oldest first.

    Attributes:
        messages: The messages. Neighbours of the same role are allowed.
    """

    messages: tuple[Message, ...]

    @classmethod
    def from_text(cls, text: str) -> Conversation:
        """Build the conversation that consists of one user turn."""
        return cls((Message("user", normalise(text)),))

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]], *, non_text: NonText = "refuse") -> Conversation:
        """Build a conversation from chat messages in the OpenAI form.

        Args:
            messages: Mappings with ``role`` and ``content``. ``content`` is a string, None (an assistant turn that
                only calls tools), or a list of parts of which every one is ``{"type": "text", "text": ...}``.
            non_text: What to do with parts that are an image, audio, a file, or anything else that is not text.

        Returns:
            The conversation, without system prompts and without turns that have no text at all. The name of the
            speaker, and the names and arguments of tool calls, are lines of a message's text.

        Raises:
            NonTextError: There is such a part, and ``non_text`` is ``refuse``.
            InputError: A message is not a mapping, or its role is unknown.
        """
        turns: list[Message] = []
        for number, message in enumerate(messages, start=1):
            if not isinstance(message, Mapping):
                raise InputError(
                    f"message {number} is a {type(message).__name__}, not a mapping with role and content",
                    hint="Write {'role': 'user', 'content': ...}",
                )
            name = message.get("role")
            if not isinstance(name, str) or name not in _ROLES:
                raise InputError(
                    f"message {number} has an unknown role",
                    hint=f"Use one of {', '.join(sorted(_ROLES))}",
                )
            role = _ROLES[name]
            if role is None:
                continue
            texts = texts_of(message)
            if texts is not None:
                if None in texts and non_text == "refuse":
                    raise NonTextError(
                        f"message {number} holds content that is not text",
                        hint="The probes read text only; on_nontext decides what happens to such a message",
                    )
                turns.append(_join(role, texts, non_text, receipt=_receipt_of(message)))
        return cls(tuple(turns))

    @classmethod
    async def read(cls, messages: Iterable[Mapping[str, Any]], *, non_text: NonText = "refuse") -> Conversation:
        """Return :meth:`from_messages` without blocking the event loop for long texts."""
        listed = list(messages)
        if sum(map(size_of, listed)) <= _INLINE_CHARACTERS:
            return cls.from_messages(listed, non_text=non_text)
        return await asyncio.to_thread(cls.from_messages, listed, non_text=non_text)

    @classmethod
    async def read_texts(cls, texts: Iterable[str]) -> tuple[Conversation, ...]:
        """Return :meth:`from_text` of each text, without blocking the event loop for long ones.

        Raises:
            InputError: One of them is not a text.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in listed):
            raise InputError("a text outside the conversation is not a string", hint="Pass strings")

        def read() -> tuple[Conversation, ...]:
            return tuple(map(cls.from_text, listed))

        return read() if sum(map(len, listed)) <= _INLINE_CHARACTERS else await asyncio.to_thread(read)

    @property
    def is_blank(self) -> bool:
        """Whether no turn holds a visible character: there is nothing to screen."""
        return not any(message.content.strip() for message in self.messages)

    @property
    def length(self) -> int:
        """Approximate number of characters, including those that a chat template adds to each message."""
        return sum(len(message.content) + _FRAME for message in self.messages)

    def turns(self) -> tuple[Turn, ...]:
        """Return the user's turns, each with its answer, oldest first.

        An assistant's greeting is the answer to a first turn without a question. A conversation in which no user
        speaks is one turn.
        """
        starts = [0, *(i for i in range(1, len(self.messages)) if self._begins_turn(i))]
        if not any(message.role == "user" for message in self.messages):
            return (Turn(self.messages),)
        turns = [_split(self.messages[start:end]) for start, end in pairwise(starts)]
        return (*turns, Turn(self.messages[starts[-1] :]))

    def units(self, context: Context) -> tuple[Conversation, ...]:
        """Return the units of the conversation, oldest first: one for each user turn that is not blank.

        Offline, a row of a data file stands for its last unit. Online, every unit without a decision gets one.
        """
        return tuple(history.unit(turn) for turn, history in self.judged(context))

    def judged(self, context: Context) -> Iterator[tuple[Turn, History]]:
        """Yield each user turn that is not blank, and the history that gives its unit and its digest."""
        history = History(context)
        for turn in self.turns():
            if not turn.is_blank:
                yield turn, history
            history.add(turn)

    def _begins_turn(self, i: int) -> bool:
        return self.messages[i].role == "user" and self.messages[i - 1].role == "assistant"

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
        return _Digest().ending_with(self.messages)

    def prefixes(self) -> list[bytes]:
        """Return a hash of the first message, of the first two, and so on: 16 bytes each.

        Texts that differ in case or white space alone have one hash: apps strip and wrap what they keep, and rows that
        differ so are copies. So these hashes tell which requests and rows belong together, online and offline. They
        are no keys for judgements: a verdict on one text must not be used for another.
        """
        digest = hashlib.blake2b(digest_size=16)
        prefixes = []
        for message in self.messages:
            text = " ".join(message.content.casefold().split())
            digest.update(f"{message.role}\0{text}\0".encode())
            prefixes.append(digest.digest())
        return prefixes

    async def place(self) -> tuple[list[bytes], bytes]:
        """Return the hash of the conversation up to each earlier turn of the user, and that of the whole.

        Long texts are hashed without blocking the event loop.
        """
        is_short = sum(len(message.content) for message in self.messages) <= _INLINE_CHARACTERS
        hashed = self.prefixes() if is_short else await asyncio.to_thread(self.prefixes)
        ends = [hashed[i - 1] for i in range(1, len(hashed)) if self._ends_question(i)]
        return ends, hashed[-1]

    def _ends_question(self, i: int) -> bool:
        return self.messages[i].role == "assistant" and self.messages[i - 1].role == "user"


class History:
    """The earlier turns that the next unit shows.

    Args:
        context: What units show beside the user's turn.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._messages: list[Message] = []
        self._digest = _Digest()
        self._hashed = 0

    def add(self, turn: Turn) -> None:
        """Append a turn to the context of later units."""
        if self._context is Context.CONVERSATION:
            self._messages.extend((*turn.question, *turn.answer))

    def unit(self, turn: Turn) -> Conversation:
        """Return the unit of a turn."""
        return Conversation((*self._messages, *turn.question))

    def digest(self, turn: Turn) -> str:
        """Return the digest of the turn's unit, without hashing the history again."""
        # Hash here and not in `add`: the last turn is never hashed as history.
        if self._hashed < len(self._messages):
            self._digest.add(self._messages[self._hashed :])
            self._hashed = len(self._messages)
        return self._digest.ending_with(turn.question)


class _Digest:
    """An incremental hash of the canonical JSON list of roles and texts."""

    _BEGUN: Final = hashlib.sha256(b"[")  # a copy costs less than a new one

    def __init__(self) -> None:
        self._hash = self._BEGUN
        self._separator = ""

    def add(self, messages: Sequence[Message]) -> None:
        """Append messages to all later results."""
        if messages:
            self._hash = self._hash.copy()
            self._hash.update(self._json(messages).encode("ascii"))
            self._separator = ", "

    def ending_with(self, messages: Sequence[Message]) -> str:
        """Return the hash with these messages at the end, in hexadecimal. Later hashes do not include them."""
        ended = self._hash.copy()
        ended.update(f"{self._json(messages)}]".encode("ascii"))
        return ended.hexdigest()

    def _json(self, messages: Sequence[Message]) -> str:
        # Same result as `json.dumps` of the list, but faster: a lone string takes its fast path.
        items = ", ".join(f'["{message.role}", {json.dumps(message.content)}]' for message in messages)
        return f"{self._separator}{items}" if items else ""


def _split(messages: tuple[Message, ...]) -> Turn:
    """Split the messages of a turn into question and answer."""
    end = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
    return Turn(messages[:end], messages[end:])


def _receipt_of(message: Mapping[str, Any]) -> str | None:
    metadata = message.get("metadata")
    receipt = metadata.get(RECEIPT) if isinstance(metadata, Mapping) else None
    return receipt if isinstance(receipt, str) else None


def _join(role: Role, texts: list[str | None], non_text: NonText, *, receipt: str | None) -> Message:
    if non_text == "drop":
        return Message(role, normalise("\n".join(text for text in texts if text is not None)), receipt=receipt)
    content = "\n".join(_MARK if text is None else text for text in texts)
    return Message(role, normalise(content), is_text=None not in texts, receipt=receipt)
