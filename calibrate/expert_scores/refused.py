"""Rows that the expert refuses. They are named and left out, and end the run if there are too many.

The expert refuses a row if it answers without a verdict (a content filter, a completion that declines) or cannot read
it (too long). The probes can still score the row. So it counts in the budget as a call of the expert, and is left out
of everything that reads the expert's score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrate.expert_scores.score_log import Refusal
from calibrate.expert_scores.worker_pool import RequestLog
from calibrate.rows.data import Dataset
from ctd_guardrail.errors import DataError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.guarantees import largest_count

__all__ = ["LimitedLog", "Limits", "RefusedRow", "allowed_rows", "repeated", "too_many"]

# Number of rows that an error message names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row without an expert score.

    Attributes:
        row: Its index in the data set.
        file: Name of its file, without the folder.
        line: Its 1-based line number.
        refusal: Reason.
    """

    row: int
    file: str
    line: int
    refusal: Refusal

    @classmethod
    def of(cls, dataset: Dataset, row: int, refusal: Refusal) -> RefusedRow:
        """Return a row of a data set."""
        return cls(row, dataset.files[dataset.file_of_row[row]].name, int(dataset.line_of_row[row]), refusal)

    def __str__(self) -> str:
        """Return file and line."""
        return f"{self.file}, row {self.line}"

    def to_dict(self) -> dict[str, Any]:
        """Return file, line and reason as values for JSON."""
        return {"file": self.file, "row": self.line, "problem": self.refusal.problem}


@dataclass(frozen=True, slots=True)
class Limits:
    """Number of rows that the expert may refuse during one run.

    Attributes:
        spare: Number of rows that it may still refuse.
        repeated: Number of rows of each conversation that is in several rows.
    """

    spare: int
    repeated: Mapping[str, int]


class LimitedLog:
    """A log that admits no request after a failure of the expert, or after too many refused rows.

    Args:
        log: The log of requests and scores.
        limits: Number of rows that may be refused.
    """

    def __init__(self, log: RequestLog, limits: Limits) -> None:
        self._log = log
        self._spare = limits.spare
        self._repeated = limits.repeated
        self._has_failed = False

    async def claim(self, conversation: str) -> bool:
        """Log the request for a conversation before it is sent, and return whether to send it."""
        return not self._has_failed and self._spare >= 0 and await self._log.claim(conversation)

    async def release(self, conversation: str) -> None:
        """Delete a request at which the expert failed."""
        self._has_failed = True
        await self._log.release(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk."""
        await self._log.save(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        """Return when the refusal is on the disk."""
        # Count first: no request is sent while the last admissible refusal is being written.
        self._spare -= self._repeated.get(conversation, 1)
        await self._log.refuse(conversation, refusal)


def allowed_rows(most: float, rows: int) -> int:
    """Return the number of rows that the expert may refuse.

    Args:
        most: A whole number of rows, or a share of them below 1.
        rows: Number of rows to score.
    """
    return most if isinstance(most, int) else largest_count(rows, most)


def repeated(digests: Iterable[str]) -> dict[str, int]:
    """Return the number of rows of each conversation that is in more than one row."""
    return {digest: count for digest, count in Counter(digests).items() if count > 1}


def too_many(dataset: Dataset, refused: Sequence[RefusedRow], *, allowed: int, rows: int) -> DataError:
    """Return the error of a run in which the expert refused too many rows.

    Args:
        dataset: The rows.
        refused: Rows that were refused so far, ascending, at least one.
        allowed: Number of rows that may be refused.
        rows: Number of rows to score.
    """
    first, others = refused[0], refused[1:]
    more = ""
    if others:
        named = "; ".join(map(str, others[:_NAMED]))
        more = f", nor for {len(others)} more: {named}" + ("; ..." if len(others) > _NAMED else "")
    return dataset.error(
        first.row,
        f"the expert gives no score for this row ({first.refusal.problem}){more}. At most {allowed} of {rows} rows may "
        "be left out",
        hint=f"{first.refusal.hint + '. ' if first.refusal.hint else ''}Remove or change these rows, or raise "
        "expert.max_refused_rows. After a change of the endpoint, --ask-refused-again requests their scores again",
    )
