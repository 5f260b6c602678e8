"""The newest delegation values of the traffic, by conversation, for a recalibration. They hold no text."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from ctd_guardrail.monitors.conversations import ClosedConversation
from ctd_guardrail.monitors.state import SavedState, State, pack_scores, unpack_scores

__all__ = ["COLUMNS", "RecentScores"]

COLUMNS: Final = ("dv", "conversation")
"""Names of the columns, which ``ctd-calibrate recalibrate`` reads by default."""


class RecentScores:
    """The scores of the conversations that ended last.

    Conversations stay whole: if the scores are too many, the oldest conversation goes. All judged turns belong here,
    not only the delegated ones: a certificate is about a random turn.

    Args:
        capacity: Largest number of scores, at least 1. A single conversation may have more.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._conversations: deque[tuple[str, tuple[float, ...]]] = deque()
        self._size = 0

    def __len__(self) -> int:
        """Return the number of scores."""
        return self._size

    def update(self, conversation: ClosedConversation) -> None:
        """Take a conversation that has ended."""
        if conversation.scores:
            self._add(conversation.conversation, conversation.scores)

    def _add(self, name: str, scores: tuple[float, ...]) -> None:
        self._conversations.append((name, scores))
        self._size += len(scores)
        while self._size > self._capacity and len(self._conversations) > 1:
            self._size -= len(self._conversations.popleft()[1])

    def csv(self) -> str:
        """Return the scores as a CSV file, in order of the beginning of their conversations.

        A turn that the base model could not read and that went to the expert has the word ``expert`` for its score.
        """
        rows = [f"{d},{name}" for name, scores in self._conversations for d in pack_scores(scores)]
        return "\n".join([",".join(COLUMNS), *rows, ""])

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {
            "capacity": self._capacity,
            "conversations": [[name, *pack_scores(scores)] for name, scores in self._conversations],
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
        saved = SavedState(state, "recent scores", ("capacity", "conversations"))
        recent = cls(capacity or saved.integer("capacity", minimum=1))
        for name, *scores in saved.lists("conversations"):
            recent._add(str(name), unpack_scores(scores))
        return recent
