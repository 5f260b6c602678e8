"""The open conversations of the traffic. They are released when they have ended, in the order in which they began."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from ctd_guardrail.monitors.state import SavedState, State, pack_scores

__all__ = ["ClosedConversation", "OpenConversations", "Request"]

_SILENCE_S: Final = 1_800.0
# A conversation holds back all that began after it. Without this limit, one client could hold back the alarms for days.
_LONGEST_S: Final = 7_200.0
# About 150 bytes each in the saved state.
_CAPACITY: Final = 8_192


class Request(NamedTuple):
    """One request, as the monitors see it.

    Attributes:
        conversation: Keyed hash that names its conversation.
        digest: Keyed hash of the conversation up to and including this turn.
        scores: d of the user's turns that this request judged, in order; +inf for one that the base model could not
            read and that goes to the expert.
        calls: Its units of text that go to the expert.
        is_placed: Whether its place in the conversation is known. False if it shows earlier turns that are not
            remembered.
        at: Seconds since 1970.
        earlier: Number of earlier turns of the user that it shows.
        is_configured: Whether it runs under the configured budget. A request under another budget counts for the
            scores and not for the rate.
    """

    conversation: str
    digest: str
    scores: tuple[float, ...]
    calls: int
    is_placed: bool
    at: float
    earlier: int = 0
    is_configured: bool = True


class ClosedConversation(NamedTuple):
    """A conversation that has ended, or that was held for too long.

    Attributes:
        conversation: Its name.
        requests: T, its requests under the configured budget. If it may go on: the largest number that it can have.
        calls: D, their calls.
        turn: d of one of its readable turns, drawn at random; None if there is none.
        is_whole: Whether it has ended.
    """

    conversation: str
    requests: int
    calls: int
    turn: float | None
    is_whole: bool = True


@dataclass(slots=True)
class _Open:
    conversation: str
    digest: str
    began: float
    last: float
    length: int = 0
    requests: int = 0
    calls: int = 0
    scores: list[float] = field(default_factory=list)

    def state(self) -> State:
        return {name: getattr(self, name) for name in self.__slots__} | {"scores": pack_scores(self.scores)}


class OpenConversations:
    """Collects requests by conversation.

    A conversation ends after 30 minutes of silence or with ``max_turns`` requests. Time is the time of the newest
    request. Conversations are released in order of their beginning. In order of their end, short conversations would
    come first, and their rate of calls may differ from that of long ones.

    An open conversation holds back those that began after it, for two hours at most. Then it is released with the
    number of requests that is worst for an alarm.

    Requests are left out, and counted, if their conversation cannot be followed from its first turn: the conversation
    goes on after its end, it is not remembered, or ``capacity`` conversations waited when it began. Late turns alone
    would say nothing about whole conversations. With ``max_turns`` of 1 each request that has a place is a conversation
    of its own.

    Args:
        seed: Key of all random choices, a whole number of at least 0.
        max_turns: Largest number of requests of a conversation, at least 1.
        capacity: Largest number of conversations that wait.

    Attributes:
        seed: The argument of the same name.
        max_turns: The argument of the same name.
        left_out: Number of requests that were left out.
    """

    def __init__(self, *, seed: int, max_turns: int = 1, capacity: int = _CAPACITY) -> None:
        self.seed = seed
        self.max_turns = max_turns
        self.left_out = 0
        self._capacity = capacity
        self._now = 0.0
        self._released = 0
        self._waiting: deque[_Open] = deque()
        self._by_name: dict[str, _Open] = {}

    def __len__(self) -> int:
        """Return the number of conversations that wait."""
        return len(self._waiting)

    def update(self, request: Request) -> list[ClosedConversation]:
        """Take one request and return the conversations that are released."""
        self._now = max(self._now, request.at)
        released = self._release()
        conversation = self._find(request)
        if conversation is None:
            self.left_out += 1
            return released
        conversation.last = self._now
        conversation.digest = request.digest
        conversation.length += 1
        conversation.scores.extend(request.scores)
        if request.is_configured:
            conversation.requests += 1
            conversation.calls += request.calls
        return released + self._release()

    def places(self) -> list[tuple[str, str]]:
        """Return (digest, name) of each open conversation, oldest first: what continues it after a restart."""
        return [(each.digest, each.conversation) for each in self._by_name.values()]

    def _find(self, request: Request) -> _Open | None:
        """Return the open conversation of a request, or begin one. Return None if the request is left out."""
        found = self._by_name.get(request.conversation)
        if found is not None and not self._has_ended(found):
            return found
        is_first = request.earlier == 0 or self.max_turns == 1
        if not (is_first and request.is_placed) or len(self._waiting) >= self._capacity:
            return None
        begun = _Open(request.conversation, request.digest, began=self._now, last=self._now)
        self._enter(begun)
        return begun

    def _enter(self, begun: _Open) -> None:
        self._waiting.append(begun)
        self._by_name.pop(begun.conversation, None)  # so that the newest is the last
        self._by_name[begun.conversation] = begun

    def _has_ended(self, conversation: _Open) -> bool:
        return conversation.length >= self.max_turns or conversation.last + _SILENCE_S <= self._now

    def _release(self) -> list[ClosedConversation]:
        released = []
        while self._waiting:
            first = self._waiting[0]
            has_ended = self._has_ended(first)
            if not has_ended and first.began + _LONGEST_S > self._now:
                break
            self._waiting.popleft()
            if self._by_name.get(first.conversation) is first:
                del self._by_name[first.conversation]
            self._released += 1
            released.append(self._close(first, has_ended=has_ended))
        return released

    def _close(self, ended: _Open, *, has_ended: bool) -> ClosedConversation:
        if not has_ended:
            # The more requests share its calls, the weaker is the evidence.
            requests = ended.requests and self.max_turns
            return ClosedConversation(ended.conversation, requests, ended.calls, None, is_whole=False)
        readable = [d for d in ended.scores if d != math.inf]
        # The draw depends on the number of the conversation, and not on its scores.
        turn = readable[int(self._draw(self._released) * len(readable))] if readable else None
        return ClosedConversation(ended.conversation, ended.requests, ended.calls, turn)

    def _draw(self, number: int) -> float:
        """Return a number in [0, 1) that looks random without the seed."""
        digest = hashlib.blake2b(str(number).encode(), digest_size=8, key=self.seed.to_bytes(16)).digest()
        return (int.from_bytes(digest) >> 11) / (1 << 53)

    def state(self) -> State:
        """Return everything that the next update depends on, as plain JSON values."""
        return {
            "seed": self.seed,
            "max_turns": self.max_turns,
            "left_out": self.left_out,
            "now": self._now,
            "released": self._released,
            "waiting": [each.state() for each in self._waiting],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the object that ``state`` was taken from.

        Raises:
            DataError: The state is not one of this object.
        """
        saved = SavedState(state, "open conversations", ("seed", "max_turns", "left_out", "now", "released", "waiting"))
        table = cls(seed=saved.integer("seed"), max_turns=saved.integer("max_turns", minimum=1))
        table.left_out = saved.integer("left_out")
        table._now = saved.number("now")
        table._released = saved.integer("released")
        for row in saved.states("waiting"):
            table._enter(_resume(row))
        return table


def _resume(row: Mapping[str, Any]) -> _Open:
    saved = SavedState(row, "open conversation", tuple(_Open.__slots__))
    return _Open(
        saved.text("conversation"),
        saved.text("digest"),
        began=saved.number("began"),
        last=saved.number("last"),
        length=saved.integer("length"),
        requests=saved.integer("requests"),
        calls=saved.integer("calls"),
        scores=list(saved.scores("scores")),
    )
