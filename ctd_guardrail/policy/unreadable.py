"""Turns of calibration conversations that the base model cannot read.

They have no delegation value. If the rail sends them to the expert, each costs a call whatever the threshold. If it
blocks them, they cost none. Only the rail's settings decide, so a policy keeps these turns apart from the scores.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ctd_guardrail._typing import BoolArray, IntArray
from ctd_guardrail.policy.turns import TurnScores

__all__ = ["Unreadable", "UnreadableTurns"]


class Unreadable(StrEnum):
    """Why the base model cannot read a turn: too many tokens, or content other than text."""

    OVERLONG = "overlong"
    NONTEXT = "nontext"


@dataclass(frozen=True, slots=True, eq=False)
class UnreadableTurns:
    """Unreadable turns, and the conversation of each.

    Attributes:
        conversation: Number of each turn's conversation, as in the scores beside them, shape [M]. A conversation
            without a readable turn has a number above theirs.
        is_overlong: Whether the turn has too many tokens, shape [M]. Otherwise it holds content other than text.
    """

    conversation: IntArray
    is_overlong: BoolArray

    def __len__(self) -> int:
        """Return the number of turns."""
        return int(self.conversation.size)

    def count(self, cause: Unreadable) -> int:
        """Return the number of turns with this cause."""
        return int(self._have(cause).sum())

    def beside(self, scores: TurnScores, causes: Collection[Unreadable]) -> TurnScores:
        """Return the scores with the turns of some causes as turns that always go to the expert.

        Args:
            scores: Scores of the readable turns.
            causes: Causes that the rail sends to the expert. Turns with another cause cost no call and are left out.
        """
        chosen = np.zeros(len(self), dtype=np.bool_)
        for cause in causes:
            chosen |= self._have(cause)
        if not chosen.any():
            return scores
        conversation = np.arange(scores.turns) if scores.conversation is None else scores.conversation
        numbers = np.concatenate([conversation, self.conversation[chosen]])
        # Conversations keep their order. Those of which every turn was left out leave no gap.
        dense = np.unique(numbers, return_inverse=True)[1].astype(np.int64)
        return TurnScores(np.append(scores.d, np.full(int(chosen.sum()), np.inf)), dense)

    def _have(self, cause: Unreadable) -> BoolArray:
        return self.is_overlong if cause is Unreadable.OVERLONG else ~self.is_overlong
