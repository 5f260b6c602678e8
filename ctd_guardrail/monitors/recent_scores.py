"""The newest delegation values of the traffic, by conversation, for a recalibration. They hold no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.state import SavedState, State, pack_scores, unpack_scores

__all__ = ["COLUMNS", "RecentScores"]

_MOST_OPEN: Final = 8_192

COLUMNS: Final = ("dv", "conversation")
"""Names of the columns, which ``ctd-calibrate recalibrate`` reads by default."""


class RecentScores:
    """The scores of the newest conversations.

    Conversations stay whole: if the scores are too many, the oldest conversation goes. All judged turns belong here,
    not only the delegated ones: a certificate is about a random turn. For the same reason a turn that follows a pause
    joins its conversation, although the alarms have closed it: late turns may have other scores than early ones.

    A conversation is written when it has been released, so that short ones are not preferred. Those that have not are
    kept beside, at most 8,192: the oldest one goes.

    Args:
        capacity: Number of scores that are written, at least 1. A single conversation may have more.
        max_turns: Largest number of turns of a conversation. Later turns are left out. With 1, there is no such limit:
            the certificate is about single turns.
    """

    def __init__(self, capacity: int, *, max_turns: int = 1) -> None:
        self._capacity = capacity
        self._max_turns = max_turns
        self._open: dict[str, list[float]] = {}  # the oldest first
        self._released: dict[str, list[float]] = {}
        self._written = 0

    def __len__(self) -> int:
        """Return the number of scores that are written."""
        return self._written

    def update(self, request: Request) -> None:
        """Take the scores of a request, if its conversation is followed from its first turn."""
        if not request.is_placed:
            return
        name = request.conversation
        followed = self._released.get(name, self._open.get(name))
        if followed is None:
            if request.earlier and self._max_turns > 1:
                return
            followed = self._open[name] = []
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
        room = None if self._max_turns == 1 else self._max_turns - len(followed)
        taken = request.scores[:room]
        followed += taken
        if name in self._released:
            self._count(len(taken))

    def release(self, name: str) -> None:
        """Write a conversation from now on. One without a score is dropped."""
        followed = self._open.pop(name, None)
        if followed:
            self._released[name] = followed
            self._count(len(followed))

    def _count(self, added: int) -> None:
        self._written += added
        while self._written > self._capacity and len(self._released) > 1:
            self._written -= len(self._released.pop(next(iter(self._released))))

    def csv(self) -> str:
        """Return the scores as a CSV file, in the order in which their conversations were released.

        A turn that the base model could not read and that went to the expert has the word ``expert`` for its score.
        """
        rows = [f"{d},{name}" for name, scores in self._released.items() for d in pack_scores(scores)]
        return "\n".join([",".join(COLUMNS), *rows, ""])

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {
            "capacity": self._capacity,
            "max_turns": self._max_turns,
            "conversations": [
                [name, is_released, *pack_scores(scores)]
                for is_released, some in ((True, self._released), (False, self._open))
                for name, scores in some.items()
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
                    recent._open[name] = list(unpack_scores(scores))
                    if is_released:
                        recent.release(name)
                case _:
                    raise DataError("saved state of recent scores has a damaged row", hint="Start new monitors")
        return recent
