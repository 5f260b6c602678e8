"""The newest delegation values of the traffic, by conversation, for a recalibration. They hold no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.state import SavedState, State, pack_scores, unpack_scores

__all__ = ["COLUMNS", "RecentScores"]

COLUMNS: Final = ("dv", "conversation")
"""Names of the columns, which ``ctd-calibrate recalibrate`` reads by default."""


@dataclass(slots=True)
class _Followed:
    """The judged turns of a conversation, and whether they are written."""

    scores: list[float] = field(default_factory=list)
    is_released: bool = False


class RecentScores:
    """The scores of the newest conversations.

    Conversations stay whole: if the scores are too many, the oldest conversation goes. All judged turns belong here,
    not only the delegated ones: a certificate is about a random turn. For the same reason a turn that follows a pause
    joins its conversation, although the alarms have closed it: late turns may have other scores than early ones.

    A conversation is written when it has been released, so that short ones are not preferred.

    Args:
        capacity: Number of scores that are kept, at least 1. A single conversation may have more.
        max_turns: Largest number of turns of a conversation. Later turns are left out. With 1, there is no such limit:
            the certificate is about single turns.
    """

    def __init__(self, capacity: int, *, max_turns: int = 1) -> None:
        self._capacity = capacity
        self._max_turns = max_turns
        self._conversations: dict[str, _Followed] = {}  # in order of their beginning
        self._size = 0

    def __len__(self) -> int:
        """Return the number of scores that are written."""
        return sum(len(each.scores) for each in self._conversations.values() if each.is_released)

    def update(self, request: Request) -> None:
        """Take the scores of a request, if its conversation is followed from its first turn."""
        if not request.is_placed:
            return
        followed = self._conversations.get(request.conversation)
        if followed is None:
            if request.earlier and self._max_turns > 1:
                return
            followed = self._conversations[request.conversation] = _Followed()
        room = None if self._max_turns == 1 else self._max_turns - len(followed.scores)
        taken = request.scores[:room]
        followed.scores += taken
        self._drop_oldest(len(taken))

    def release(self, name: str) -> None:
        """Write a conversation from now on. One without a score is dropped."""
        followed = self._conversations.get(name)
        if followed is not None and followed.scores:
            followed.is_released = True
        elif followed is not None:
            del self._conversations[name]

    def _drop_oldest(self, added: int) -> None:
        self._size += added
        # Conversations without a score take room too.
        while max(self._size, len(self._conversations)) > self._capacity and len(self._conversations) > 1:
            oldest = next(iter(self._conversations))
            self._size -= len(self._conversations.pop(oldest).scores)

    def csv(self) -> str:
        """Return the scores as a CSV file, in order of the beginning of their conversations.

        A turn that the base model could not read and that went to the expert has the word ``expert`` for its score.
        """
        written = ((name, each) for name, each in self._conversations.items() if each.is_released)
        rows = [f"{d},{name}" for name, each in written for d in pack_scores(each.scores)]
        return "\n".join([",".join(COLUMNS), *rows, ""])

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {
            "capacity": self._capacity,
            "max_turns": self._max_turns,
            "conversations": [
                [name, each.is_released, *pack_scores(each.scores)] for name, each in self._conversations.items()
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, capacity: int | None = None) -> Self:
        """Return the buffer that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            capacity: Number of scores that are kept from now on; None: as before.

        Raises:
            DataError: The state is not one of this buffer.
        """
        saved = SavedState(state, "recent scores", ("capacity", "max_turns", "conversations"))
        recent = cls(capacity or saved.integer("capacity", minimum=1), max_turns=saved.integer("max_turns", minimum=1))
        for row in saved.lists("conversations"):
            match row:
                case [str(name), bool(is_released), *scores]:
                    recent._conversations[name] = _Followed(list(unpack_scores(scores)), is_released)
                    recent._drop_oldest(len(scores))
                case _:
                    raise DataError("saved state of recent scores has a damaged row", hint="Start new monitors")
        return recent
