"""Columns of scores in CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.state import EXPERT
from ctd_guardrail.policy.turns import TurnScores

__all__ = ["CONVERSATION", "ScoreColumns", "has_column", "read_scores"]

CONVERSATION: Final = "conversation"
"""Column of the conversations that is read by default."""


class ScoreColumns(NamedTuple):
    """Turns of a file in the order of its lines.

    Attributes:
        d: Delegation values, shape [turns]; ``+inf`` for a turn that went to the expert unread.
        conversation: Number of each turn's conversation from 0, by first appearance, shape [turns]; None if it was not
            read.
    """

    d: FloatArray
    conversation: IntArray | None

    @property
    def turns(self) -> TurnScores:
        """The turns as the data of a certificate."""
        return TurnScores.of(self.d, self.conversation)


def read_scores(path: Path, column: str, conversation: str | None = None) -> ScoreColumns:
    """Read a column of scores, and that of the conversations, from a CSV file whose first line names its columns.

    Args:
        path: The file, UTF-8. Blank lines are skipped.
        column: Name of the column of scores. ``expert`` stands for the score of a turn that the base model could not
            read and that went to the expert.
        conversation: Name of the column of conversation identifiers; None: it is not read.

    Raises:
        DataError: The file cannot be read, has no such column or no row, or a row has no finite number or no
            identifier in it. The message names the line.
    """
    scores: list[float] = []
    numbers: dict[str, int] = {}
    members: list[int] = []
    for line, fields in _read_lines(path, [column] if conversation is None else [column, conversation]):
        scores.append(_score(fields[0], path, line))
        if conversation is not None:
            members.append(numbers.setdefault(_identifier(fields[1], path, line), len(numbers)))
    if not scores:
        raise DataError("has no rows", file=path, hint="A budget needs calibration rows")
    return ScoreColumns(np.array(scores), None if conversation is None else np.array(members, dtype=np.int64))


def has_column(path: Path, column: str) -> bool:
    """Return whether the first line of a CSV file names a column. A file that cannot be read has none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return column in _header(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False  # the reader of the scores says what is wrong


def _header(lines: Iterator[list[str]]) -> list[str]:
    return [name.strip() for name in next(lines, [])]


def _read_lines(path: Path, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line, the fields in the order of the columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = _header(lines)
            for column in columns:
                if column not in header:
                    raise DataError(
                        f"there is no column {column!r}",
                        file=path,
                        row=1,
                        hint=f"Name one of: {', '.join(header)}" if header else "The first line names the columns",
                    )
            places = [header.index(column) for column in columns]
            for fields in lines:
                if fields:
                    if max(places) >= len(fields):
                        raise DataError(
                            f"has {len(fields)} fields, but the column of the scores is number {max(places) + 1}",
                            file=path,
                            row=lines.line_num,
                            hint="Give every line as many fields as the first",
                        )
                    yield lines.line_num, [fields[place] for place in places]
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path, hint="Name a readable CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("is not a CSV file in UTF-8", file=path, hint="Save the file as CSV in UTF-8") from error


def _identifier(field: str, path: Path, line: int) -> str:
    if not field.strip():
        raise DataError(
            "the conversation has no identifier",
            file=path,
            row=line,
            hint="Give every turn the identifier of its conversation, or use --independent if no two rows share one",
        )
    return field.strip()


def _score(field: str, path: Path, line: int) -> float:
    if field.strip() == EXPERT:
        return math.inf
    try:
        value = float(field)
    except ValueError:
        # The value is not quoted: a wrong column may contain users' text.
        raise DataError(
            "the score is not a number", file=path, row=line, hint="Name the column that holds the scores"
        ) from None
    if not math.isfinite(value):
        raise DataError(f"the score is {value}", file=path, row=line, hint="Scores must be finite numbers")
    return value
