"""Labelled conversations from JSON lines. Every row is checked first.

A row holds ``text`` or ``messages`` (OpenAI form) and ``label`` (1 = unsafe, 0 = safe). Optional fields are ``id``,
``group``, ``split``, ``cluster``, ``conversation`` and columns of recorded expert scores. Other fields are ignored.

The label and the expert's score belong to the last turn of the user. The turns before it serve the budget.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.config.validation import near_miss
from ctd_guardrail.errors import DataError, InputError
from ctd_guardrail.policy.manifest import DataRecord
from ctd_guardrail.text.conversation import Context, Conversation

__all__ = ["Dataset", "read_dataset"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of one or several files, column by column.

    Attributes:
        conversations: The unit that each row's label belongs to, which is the last one of the row, length n.
        wholes: All messages of each row, length n.
        context: Context of a unit beside the user's turn.
        labels: 1 = unsafe, NaN = no label, shape [n].
        is_readable: Whether the base model reads the unit, shape [n]. False if its turn holds content other than text,
            or if :meth:`without` left it out.
        expert: Recorded expert scores, P(unsafe), NaN in rows without one and without a label, shape [n]; None if no
            column was asked for.
        groups: Group of each row, or the file's name if the row has none; None if there is one file without groups.
        parts: ``split`` field of each row; None if the rows have none.
        clusters: ``cluster`` field of each row: near-duplicates share one.
        dialogues: ``conversation`` field of each row: turns of one conversation share one.
        files: Files of the rows.
        file_of_row: Index into ``files``, shape [n].
        line_of_row: 1-based line number, shape [n].
        records: Name, hash and size of each file.
    """

    conversations: list[Conversation]
    wholes: list[Conversation]
    context: Context
    labels: FloatArray
    is_readable: BoolArray
    expert: FloatArray | None
    groups: list[str] | None
    parts: list[str | None] | None
    clusters: list[str | None]
    dialogues: list[str | None]
    files: tuple[Path, ...]
    file_of_row: IntArray
    line_of_row: IntArray
    records: list[DataRecord]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.conversations)

    @property
    def is_labelled(self) -> BoolArray:
        """Whether a row has a label, shape [n]."""
        return ~np.isnan(self.labels)

    def view(self, conversations: list[Conversation], rows: IntArray) -> Self:
        """Return a data set of other conversations, each with label, file and line of one of the rows.

        Only these columns fit the conversations.

        Args:
            conversations: The conversations, length m.
            rows: A row of this data set for each, shape [m].
        """
        return replace(
            self,
            conversations=conversations,
            labels=self.labels[rows],
            file_of_row=self.file_of_row[rows],
            line_of_row=self.line_of_row[rows],
        )

    def without(self, unreadable: BoolArray) -> Self:
        """Return the data set with some more rows marked as not readable, shape [n]."""
        return replace(self, is_readable=self.is_readable & ~unreadable)

    def error(self, row: int, problem: str, *, hint: str = "") -> DataError:
        """Return an error that names the file and the line of a row.

        Args:
            row: Index of the row.
            problem: The fault of the row.
            hint: Advice for the user.
        """
        file = self.files[self.file_of_row[row]]
        return DataError(problem, file=file, row=int(self.line_of_row[row]), hint=hint)


@dataclass(frozen=True, slots=True)
class _Row:
    conversation: Conversation
    whole: Conversation
    label: float
    expert: float
    id: str | None
    group: str | None
    part: str | None
    cluster: str | None
    dialogue: str | None


def read_dataset(
    files: Sequence[Path],
    *,
    expert_column: str | None = None,
    context: Context = Context.CONVERSATION,
    for_budget: bool = False,
) -> Dataset:
    """Read and check all rows of all files.

    Args:
        files: JSON lines; gzip if the name ends in ``.gz``.
        expert_column: Field that holds recorded expert scores.
        context: Context of a unit beside the user's turn.
        for_budget: Whether rows are kept that can serve the budget alone: those with the label null, and those whose
            last turn holds content other than text.

    Raises:
        DataError: A file cannot be read or holds no rows, a row is malformed (file and row are named), or one of the
            two labels does not occur.
    """
    rows: list[_Row] = []
    origin: list[tuple[int, int]] = []
    records: list[DataRecord] = []
    for number, file in enumerate(files):
        before = len(rows)
        ids: dict[str, int] = {}
        for line, fields in _read_lines(file):
            try:
                row = _parse(fields, expert_column, context, for_budget=for_budget)
            except InputError as error:
                raise DataError(error.problem, file=file, row=line, hint=error.hint) from None
            if row.id is not None and ids.setdefault(row.id, line) != line:
                raise DataError(
                    f"the id is also the id of row {ids[row.id]}",
                    file=file,
                    row=line,
                    hint="Make ids unique in the file",
                )
            rows.append(row)
            origin.append((number, line))
        if len(rows) == before:
            raise DataError("holds no rows", file=file, hint="Write one JSON object a line")
        records.append(DataRecord(file=file.name, sha256=_hash(file), rows=len(rows) - before))
    where = np.array(origin, dtype=np.int64)
    dataset = Dataset(
        conversations=[row.conversation for row in rows],
        wholes=[row.whole for row in rows],
        context=context,
        labels=np.array([row.label for row in rows]),
        is_readable=np.array([row.conversation.turns()[-1].is_text for row in rows]),
        expert=None if expert_column is None else np.array([row.expert for row in rows]),
        groups=_groups(rows, [files[number] for number, _ in origin], several=len(files) > 1),
        parts=None if all(row.part is None for row in rows) else [row.part for row in rows],
        clusters=[row.cluster for row in rows],
        dialogues=[row.dialogue for row in rows],
        files=tuple(files),
        file_of_row=where[:, 0],
        line_of_row=where[:, 1],
        records=records,
    )
    for label, name in ((1.0, "unsafe"), (0.0, "safe")):
        if not (dataset.labels == label).any():
            raise DataError(
                f"no row has label {label:.0f} ({name})",
                file=files[0] if len(files) == 1 else None,
                hint="Add rows of this label: probes need both",
            )
    return dataset


def _read_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line number and fields of every line that is not blank."""
    line = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for line, raw in enumerate(stream, start=1):
                content = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
                if content.strip():
                    yield line, _decode(content, file, line)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged gzip data"
        raise DataError(f"cannot be read ({reason})", file=file, row=line + 1 if line else None) from error


def _decode(content: bytes, file: Path, line: int) -> Mapping[str, Any]:
    try:
        fields = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError("is not UTF-8", file=file, row=line, hint="Save the file as UTF-8") from None
    except (ValueError, RecursionError):
        raise DataError("is not JSON", file=file, row=line, hint="Write one JSON object a line") from None
    if not isinstance(fields, dict):
        raise DataError("is not a JSON object", file=file, row=line, hint='Write {"text": ..., "label": 0}')
    return fields


def _parse(fields: Mapping[str, Any], expert_column: str | None, context: Context, *, for_budget: bool) -> _Row:
    """Check one row.

    Raises:
        InputError: A field is missing or malformed.
    """
    whole = _whole(fields, for_budget=for_budget)
    units = whole.units(context)
    if not units:
        raise InputError("holds no text to screen", hint="Remove the row")
    label = _label(fields, may_be_null=for_budget)
    return _Row(
        conversation=units[-1],
        whole=whole,
        label=label,
        expert=_expert(fields, expert_column, may_be_null=math.isnan(label)),
        id=_name(fields, "id"),
        group=_name(fields, "group"),
        part=_name(fields, "split"),
        cluster=_name(fields, "cluster"),
        dialogue=_name(fields, "conversation"),
    )


def _whole(fields: Mapping[str, Any], *, for_budget: bool) -> Conversation:
    text, messages = fields.get("text"), fields.get("messages")
    if (text is None) == (messages is None):
        state = "neither text nor messages" if text is None else "both text and messages"
        raise InputError(f"holds {state}", hint="Give exactly one of them")
    if messages is not None:
        if not isinstance(messages, list):
            raise InputError("messages is not a list", hint='Write [{"role": "user", "content": ...}, ...]')
        return Conversation.from_messages(messages, non_text="mark" if for_budget else "refuse")
    if isinstance(text, str):
        return Conversation.from_text(text)
    raise InputError("text is not a string", hint="Put chat turns under messages")


def _label(fields: Mapping[str, Any], *, may_be_null: bool) -> float:
    label = fields.get("label")
    if label is None:
        if may_be_null and "label" in fields:
            return math.nan
        hint = "Give 1 (unsafe) or 0 (safe)"
        raise InputError("label is missing", hint=f"{hint}, or null in a row for the budget" if may_be_null else hint)
    if isinstance(label, bool) or not isinstance(label, int | float) or label not in (0, 1):
        raise InputError("label is neither 0 nor 1", hint="Give 1 (unsafe) or 0 (safe), as a number")
    return float(label)


def _expert(fields: Mapping[str, Any], column: str | None, *, may_be_null: bool) -> float:
    if column is None:
        return math.nan
    score = fields.get(column)
    if score is None:
        if may_be_null:
            return math.nan
        close = near_miss(column, fields)
        hint = f"Did you mean {close!r}?" if close else "data.expert_column names a score that every row has"
        raise InputError(f"expert score {column!r} is missing", hint=hint)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
        raise InputError(f"expert score {column!r} is not a number in [0, 1]", hint="Give P(unsafe)")
    return float(score)


def _name(fields: Mapping[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{key} is not a string", hint="Use a string or a whole number")
    return str(value)


def _groups(rows: Sequence[_Row], files: Sequence[Path], *, several: bool) -> list[str] | None:
    if not several and all(row.group is None for row in rows):
        return None
    return [
        row.group if row.group is not None else file.name.split(".")[0] for row, file in zip(rows, files, strict=True)
    ]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
