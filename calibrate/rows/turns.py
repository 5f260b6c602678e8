"""The turns that the rail would judge in a conversation.

What costs money is a turn: the rail judges every turn of a user, also those before the last one. What is independent is
a conversation: the turns of one depend on each other, and scores often rise along it. One turn of each conversation
would show another rate than all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from calibrate.rows.data import Dataset
from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.policy.unreadable import UnreadableTurns
from ctd_guardrail.text.conversation import Conversation

__all__ = ["ScoredTurns", "Turns", "collect_turns"]


@dataclass(frozen=True, slots=True)
class ScoredTurns:
    """Scores of turns.

    Attributes:
        readable: Delegation values of the turns that the base model reads.
        unreadable: The other turns; None if there are none.
    """

    readable: TurnScores
    unreadable: UnreadableTurns | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """Every turn that the rail would judge in some conversations, in their order.

    Attributes:
        units: What the rail judges at each turn, length N.
        rows: A row that holds each, shape [N].
        conversation: Number of each turn's conversation, ascending from 0, shape [N].
        is_text: Whether the turn is text alone, shape [N].
        is_overlong: Whether the unit has more tokens than the base model reads, shape [N].
    """

    units: list[Conversation]
    rows: IntArray
    conversation: IntArray
    is_text: BoolArray
    is_overlong: BoolArray

    def __len__(self) -> int:
        """Return the number of turns."""
        return len(self.units)

    @property
    def readable(self) -> IntArray:
        """Places of the turns that the base model reads, ascending."""
        return np.flatnonzero(self.is_text & ~self.is_overlong)

    def with_overlong(self, is_overlong: BoolArray) -> Self:
        """Return the turns with this mask of the overlong ones, shape [N]."""
        return replace(self, is_overlong=is_overlong)

    def scored(self, d: FloatArray) -> ScoredTurns:
        """Return the scores of the turns.

        Args:
            d: Delegation values of the readable turns, shape [readable].

        Raises:
            DataError: No turn is readable.
        """
        is_readable = self.is_text & ~self.is_overlong
        # Conversations without a readable turn come last.
        last = ~np.isin(self.conversation, self.conversation[is_readable])
        numbers = np.unique(self.conversation + last * len(self), return_inverse=True)[1].astype(np.int64)
        unread = UnreadableTurns(numbers[~is_readable], self.is_overlong[~is_readable])
        return ScoredTurns(TurnScores.of(d, numbers[is_readable]), unread if len(unread) else None)


def collect_turns(dataset: Dataset, rows: IntArray) -> Turns:
    """Return the turns of some conversations. A text that occurs twice in one of them is judged once.

    Args:
        dataset: All rows.
        rows: A row of each conversation. The others of the same ``conversation`` field belong to it.
    """
    members: dict[str, list[int]] = {}
    for row, name in enumerate(dataset.dialogues):
        if name is not None:
            members.setdefault(name, []).append(row)
    units: list[Conversation] = []
    origins: list[tuple[int, int]] = []
    texts: list[bool] = []
    for number, row in enumerate(rows.tolist()):
        name = dataset.dialogues[row]
        for member, unit, is_text in _units(dataset, [row] if name is None else members[name]):
            units.append(unit)
            origins.append((member, number))
            texts.append(is_text)
    where = np.array(origins, dtype=np.int64).reshape(-1, 2)
    return Turns(units, where[:, 0], where[:, 1], np.array(texts, dtype=np.bool_), np.zeros(len(units), dtype=np.bool_))


def _units(dataset: Dataset, rows: Sequence[int]) -> list[tuple[int, Conversation, bool]]:
    """Return row, unit, and whether it is text, for each distinct unit of the rows of one conversation."""
    found: dict[tuple[str, int], tuple[int, Conversation, bool]] = {}
    for row in rows:
        seen: Counter[str] = Counter()
        for turn, history in dataset.wholes[row].judged(dataset.context):
            digest = history.digest(turn)
            # The rail recalls no decision about content that it cannot read.
            key = digest, 0 if turn.is_text else seen[digest]
            seen[digest] += 1
            if key not in found:
                found[key] = row, history.unit(turn), turn.is_text
    return list(found.values())
