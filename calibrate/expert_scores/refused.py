"""Rows that the expert refuses: they are named, left out, and end the run where they are too many.

A refused row is one that the expert answers without a verdict (a content filter, a completion that declines), or that
it cannot read (too long). The probes can still score it. So it counts in the budget, where it is a call of the expert
like any other, and it is left out of whatever reads the expert's score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrate.expert_scores.score_log import Refusal
from calibrate.expert_scores.worker_pool import Book
from calibrate.rows.data import Dataset
from ctd_guardrail.errors import DataError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.guarantees import largest_count

__all__ = ["Limits", "RefusedRow", "RunBook", "allowed_rows", "repeated", "too_many"]

# An error message names so many rows.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row without an expert score.

    Attributes:
        row: Its index in the data set.
        file: Name of its file, without the folder.
        line: Its 1-based line number.
        refusal: Why there is no score.
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
        """Return where the row is found."""
        return f"{self.file}, row {self.line}"

    def to_dict(self) -> dict[str, Any]:
        """Return place and reason as JSON-able values."""
        return {"file": self.file, "row": self.line, "problem": self.refusal.problem}


@dataclass(frozen=True, slots=True)
class Limits:
    """How many rows the expert may refuse during one run.

    Attributes:
        spare: Rows that it may still refuse.
        repeated: Number of rows of each conversation that stands in several.
    """

    spare: int
    repeated: Mapping[str, int]


class RunBook:
    """The journal during one run: nothing more is asked once the expert has failed, or has refused too many rows.

    Args:
        journal: Where everything is written down.
        limits: How many rows may be refused.
    """

    def __init__(self, journal: Book, limits: Limits) -> None:
        self._journal = journal
        self._spare = limits.spare
        self._repeated = limits.repeated
        self._has_failed = False

    async def claim(self, conversation: str) -> bool:
        """Write down that a question is about to be asked, and return whether it shall be."""
        return not self._has_failed and self._spare >= 0 and await self._journal.claim(conversation)

    async def release(self, conversation: str) -> None:
        """Strike out a question at which the expert failed."""
        self._has_failed = True
        await self._journal.release(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk."""
        await self._journal.save(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        """Return when the refusal is on the disk."""
        # Counted first: no question is worth asking while the last refusal that may be is being written.
        self._spare -= self._repeated.get(conversation, 1)
        await self._journal.refuse(conversation, refusal)


def allowed_rows(most: float, rows: int) -> int:
    """Return how many rows the expert may refuse.

    Args:
        most: A whole number of rows, or a share of them below 1.
        rows: Number of rows to score.
    """
    return most if isinstance(most, int) else largest_count(rows, most)


def repeated(digests: Iterable[str]) -> dict[str, int]:
    """Return the number of rows of each conversation that stands in more than one."""
    return {digest: count for digest, count in Counter(digests).items() if count > 1}


def too_many(dataset: Dataset, refused: Sequence[RefusedRow], *, allowed: int, rows: int) -> DataError:
    """Return the error of a run in which the expert refused too many rows.

    Args:
        dataset: The rows.
        refused: Those that were refused so far, ascending, at least one.
        allowed: How many may be.
        rows: How many were to be scored.
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
        "expert.max_refused_rows. After a change of the endpoint, --ask-refused-again asks about them again",
    )
