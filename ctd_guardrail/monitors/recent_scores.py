"""The newest delegation values of the traffic, for a recalibration. They hold no text."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from ctd_guardrail.monitors.conformal import finite_score
from ctd_guardrail.monitors.state import SavedState, State

__all__ = ["COLUMN", "RecentScores"]

COLUMN: Final = "dv"
"""Name of the column, which ``ctd-calibrate recalibrate`` reads by default."""


class RecentScores:
    """A ring buffer of the newest scores.

    Add all inputs that the probes scored, not only the delegated ones: a certificate is about a random input.

    Args:
        capacity: Number of scores that are kept, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self._scores: deque[float] = deque(maxlen=capacity)

    def __len__(self) -> int:
        """Return the number of scores."""
        return len(self._scores)

    def update(self, d: float) -> None:
        """Take one score.

        Raises:
            DataError: It is NaN or infinite.
        """
        self._scores.append(finite_score(d))

    def csv(self) -> str:
        """Return the scores as a CSV file, oldest first."""
        return "\n".join([COLUMN, *map(repr, self._scores), ""])

    def state(self) -> State:
        """Return everything as plain JSON values."""
        return {"capacity": self._scores.maxlen, "scores": list(self._scores)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, capacity: int | None = None) -> Self:
        """Return the buffer that ``state`` was taken from.

        Args:
            state: What :meth:`state` returned.
            capacity: Number of scores that are kept from now on; None: as before.

        Raises:
            DataError: The state is not one of this buffer.
        """
        saved = SavedState(state, "recent scores", ("capacity", "scores"))
        recent = cls(capacity or saved.integer("capacity", minimum=1))
        recent._scores.extend(saved.numbers("scores").tolist())
        return recent
