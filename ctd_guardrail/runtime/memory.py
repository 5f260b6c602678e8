"""What a guard remembers from one request to the next: judgements, and which requests are of one conversation.

Both are under keyed hashes and hold no text. A judgement belongs to the exact unit: a verdict on one text is never used
for another. Conversations are told apart by digests that fold case and white space
(:meth:`ctd_guardrail.text.conversation.Conversation.prefixes`), because apps strip and wrap what they keep.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Final, NamedTuple, Protocol

from ctd_guardrail.decision import Decision
from ctd_guardrail.runtime.decision_cache import AnswerCache, DecisionCache

__all__ = ["LocalMemory", "Memory", "Placement", "keyed", "names"]

_CAPACITY: Final = 16_384
# Requests that began alike and wait for their second turn. More of them share the newest names.
_MOST_WAITING: Final = 1_024
_DIGEST_BYTES: Final = 16


class Placement(NamedTuple):
    """The place of a request in its conversation.

    Attributes:
        conversation: Name of the conversation.
        digest: Keyed hash of the conversation up to this request, under which :meth:`Memory.place` finds it again.
        is_placed: False if the request shows earlier turns, and none of them is remembered: after a restart, at
            another replica, or because a client wrote them.
    """

    conversation: str
    digest: str
    is_placed: bool


class Memory(Protocol):
    """Remembers judgements and conversations. It raises nothing: what it cannot answer is not remembered.

    Attributes:
        answers: Answers that the main LLM gave in this process.
    """

    answers: AnswerCache

    async def recall(self, judgement_key: str, unit: str) -> Decision | None:
        """Return the decision about a unit, or None if there is none.

        Args:
            judgement_key: Hash of everything that decisions depend on beside the unit.
            unit: Digest of the unit.
        """
        ...

    async def prefetch(self, judgement_key: str, units: Callable[[], Iterable[str]]) -> None:
        """Prepare to recall several units, where that saves time.

        Args:
            judgement_key: Hash of everything that decisions depend on beside the unit.
            units: Returns the digests of the units. A memory that saves nothing does not call it.
        """
        ...

    async def remember(self, judgement_key: str, unit: str, decision: Decision) -> None:
        """Keep a decision, unless a failure policy made it."""
        ...

    def note_answer(self, answer: str) -> None:
        """Keep the digest of an answer that the main LLM gave. It returns at once."""
        ...

    async def knows_answer(self, answer: str) -> bool:
        """Return whether the main LLM gave an answer with this digest, in any process that shares this memory."""
        ...

    async def place(self, before: Sequence[bytes], now: bytes) -> Placement:
        """Return the conversation that a request belongs to.

        A request without earlier turns begins a conversation. Its name waits under the digest ``now``. A later request
        takes the newest name that waits under the longest prefix that is known, and lets it wait under its own digest.
        Older ones may be of conversations that their users have left. Two conversations that begin alike may swap names
        there. Their turns so far are equal, so nothing that is counted by conversation changes.

        If no name waits, the request is a repetition or shows an edited turn. It gets the name that its own digest, or
        else that prefix, has seen last.

        Args:
            before: Digests of the conversation up to each earlier turn of the user, oldest first.
            now: Digest of the whole conversation.
        """
        ...


def keyed(digest: bytes, key: bytes) -> str:
    """Return the keyed hash under which a digest is kept, in hexadecimal. Without the key no text can be tested."""
    return hashlib.blake2b(digest, key=key, digest_size=_DIGEST_BYTES).hexdigest()


def names() -> Iterator[str]:
    """Yield names of conversations, 32 hexadecimal digits each. Those of another process are others."""
    process = secrets.token_hex(_DIGEST_BYTES // 2)
    return (f"{process}{number:0{_DIGEST_BYTES}x}" for number in count())


class _Place:
    """The names at one digest: those that wait, longest first, and the one that was there last."""

    __slots__ = ("last", "waiting")

    def __init__(self, name: str) -> None:
        self.waiting = [name]
        self.last = name

    def add(self, name: str) -> None:
        self.waiting.append(name)
        self.last = name
        if len(self.waiting) > _MOST_WAITING:
            del self.waiting[0]


class LocalMemory:
    """The memory of one process. Thread-safe; its coroutines never suspend.

    Args:
        capacity: Largest number of judgements, of answers, and of digests of conversations. The least recently used are
            dropped first.

    Attributes:
        decisions: Judgements of this process.
        answers: Answers that the main LLM gave. They do not depend on a policy.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self.decisions = DecisionCache(capacity)
        self.answers = AnswerCache(capacity)
        self._capacity = capacity
        self._key = secrets.token_bytes(_DIGEST_BYTES)
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._fresh = names()
        self._lock = threading.Lock()

    async def recall(self, judgement_key: str, unit: str) -> Decision | None:
        """Return the decision about a unit; see :class:`Memory`."""
        return self.decisions.get(judgement_key, unit)

    async def prefetch(self, judgement_key: str, units: Callable[[], Iterable[str]]) -> None:
        """Do nothing: this memory recalls at once."""

    async def remember(self, judgement_key: str, unit: str, decision: Decision) -> None:
        """Keep a decision; see :class:`Memory`."""
        self.decisions.put(judgement_key, unit, decision)

    def note_answer(self, answer: str) -> None:
        """Keep the digest of an answer; see :class:`Memory`."""
        self.answers.add(answer)

    async def knows_answer(self, answer: str) -> bool:
        """Return whether the main LLM gave an answer; see :class:`Memory`."""
        return answer in self.answers

    async def place(self, before: Sequence[bytes], now: bytes) -> Placement:
        """Return the conversation of a request; see :class:`Memory`."""
        with self._lock:
            digest = keyed(now, self._key)
            name, is_placed = self._name(before, digest) if before else (next(self._fresh), True)
            self._wait(digest, name)
            return Placement(name, digest, is_placed)

    def restore(self, key: bytes, conversations: Iterable[tuple[str, str]]) -> None:
        """Continue conversations of an earlier process.

        A memory that has begun conversations under another key keeps those and ignores the others.

        Args:
            key: The :attr:`key` of that process.
            conversations: Digest and name of each.
        """
        with self._lock:
            if self._places and key != self._key:
                return
            self._key = key
            for digest, name in conversations:
                known = self._places.get(digest)
                if known is None or name not in known.waiting:
                    self._wait(digest, name)

    @property
    def key(self) -> bytes:
        """The secret of the keyed hashes."""
        return self._key

    def clear(self) -> None:
        """Forget everything."""
        self.decisions.clear()
        self.answers.clear()
        with self._lock:
            self._places.clear()

    def _name(self, before: Sequence[bytes], digest: str) -> tuple[str, bool]:
        here = self._places.get(digest)
        for prefix in reversed(before):
            found = self._places.get(keyed(prefix, self._key))
            if found is not None:
                if found.waiting:
                    found.last = found.waiting.pop()
                    return found.last, True
                break
        else:
            return (here.last, True) if here is not None else (next(self._fresh), False)
        return (here or found).last, True

    def _wait(self, digest: str, name: str) -> None:
        place = self._places.get(digest)
        if place is None:
            self._places[digest] = _Place(name)
            if len(self._places) > self._capacity:
                self._places.popitem(last=False)
        else:
            place.add(name)
            self._places.move_to_end(digest)
