"""Delegation values of turns, grouped by conversation: the data behind a certificate.

Turns of one conversation depend on each other. Conversations do not, so they are the units of every statement on
confidence.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import DataError

__all__ = ["BudgetUnit", "TurnScores"]


class BudgetUnit(StrEnum):
    """What alpha is a share or a number of.

    ``turn``: calls per judged turn, a share. ``conversation``: calls per conversation, a mean number that may exceed 1.
    """

    TURN = "turn"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True, eq=False)
class TurnScores:
    """Delegation values of turns in ascending order, and the conversation of each.

    Use :meth:`of`, which checks and sorts.

    Attributes:
        d: Delegation values, ascending, shape [turns]. ``+inf`` is a turn that goes to the expert whatever the
            threshold, as an unreadable one does.
        conversation: Number of each turn's conversation, aligned with ``d``, shape [turns]. Conversations are numbered
            from 0 in the order in which they arrived. None: every turn is a conversation of its own.
    """

    d: FloatArray
    conversation: IntArray | None = None

    @classmethod
    def of(cls, scores: ArrayLike, conversation: Iterable[Hashable] | NDArray[Any] | None = None) -> TurnScores:
        """Check and sort the scores of turns.

        Args:
            scores: One delegation value for each turn, in order of arrival, shape [turns].
            conversation: An identifier for each turn, equal for the turns of one conversation, numbered by its
                first appearance. None: every turn is a conversation of its own.

        Raises:
            DataError: There are no scores, one is NaN or ``-inf``, or the number of identifiers is another one. The
                error names the row.
        """
        d = np.asarray(scores, dtype=np.float64)
        if d.ndim != 1:
            raise DataError(
                f"delegation values form an array of shape {d.shape}, not one column",
                hint="Give one number for each turn",
            )
        if d.size == 0:
            raise DataError("there are no delegation values", hint="A budget needs calibration rows")
        bad = np.flatnonzero(np.isnan(d) | (d == -np.inf))
        if bad.size:
            raise DataError(
                f"delegation value is {d[bad[0]]}",
                row=int(bad[0]) + 1,
                hint="Delegation values must be numbers, or +inf for a turn that always goes to the expert",
            )
        if conversation is None:
            return cls(np.sort(d))
        numbers: dict[Hashable, int] = {}
        ids = conversation.tolist() if isinstance(conversation, np.ndarray) else conversation
        numbered = np.array([numbers.setdefault(name, len(numbers)) for name in ids], dtype=np.int64)
        if numbered.size != d.size:
            raise DataError(
                f"there are {numbered.size} conversation identifiers for {d.size} delegation values",
                hint="Give one identifier for each turn",
            )
        order = np.argsort(d, kind="stable")
        return cls(d[order], numbered[order])

    @property
    def turns(self) -> int:
        """Number of turns."""
        return int(self.d.size)

    @property
    def conversations(self) -> int:
        """Number of conversations."""
        return self.turns if self.conversation is None else int(self.conversation.max()) + 1

    @property
    def lengths(self) -> IntArray:
        """Number of turns of each conversation in order of arrival, shape [conversations]."""
        if self.conversation is None:
            return np.ones(self.turns, dtype=np.int64)
        return np.bincount(self.conversation).astype(np.int64)

    @property
    def max_turns(self) -> int:
        """Number of turns of the longest conversation."""
        return int(self.lengths.max())

    @property
    def has_several_turns(self) -> bool:
        """Whether a conversation has more than one turn."""
        return self.conversations < self.turns

    @property
    def always(self) -> int:
        """Number of turns that go to the expert whatever the threshold."""
        return self.turns - int(np.searchsorted(self.d, np.inf))

    def count_above(self, threshold: float) -> int:
        """Return the number of turns that a threshold delegates."""
        return self.turns - int(np.searchsorted(self.d, threshold, side="right"))

    def rate_above(self, threshold: float, unit: BudgetUnit = BudgetUnit.TURN) -> float:
        """Return the share of the turns that a threshold delegates, or their mean number in a conversation."""
        return self.count_above(threshold) / (self.turns if unit is BudgetUnit.TURN else self.conversations)
