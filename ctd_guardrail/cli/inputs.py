"""Inputs of ``ctd-guardrail check``: one a line, as plain text or as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ctd_guardrail.errors import DataError

__all__ = ["InputFormat", "InputRow", "read_inputs"]


class InputFormat(StrEnum):
    """Format of the lines. ``auto`` decides by the first line."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class InputRow:
    """One input.

    Attributes:
        id: The row's ``id``, or its 1-based line number if it has none.
        messages: Chat messages in the OpenAI form.
    """

    id: str
    messages: Sequence[Mapping[str, Any]]

    @property
    def preview(self) -> str:
        """The last message on one line, for the terminal."""
        content = self.messages[-1].get("content") if self.messages else ""
        return " ".join(str(content).split())


def read_inputs(lines: Iterable[str], *, form: InputFormat, file: Path | str) -> Iterator[InputRow]:
    """Yield the inputs.

    Args:
        lines: Lines of a text stream.
        form: How to read them.
        file: Name of the stream in errors.

    Raises:
        DataError: A line does not have the format. The error names its row.
    """
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n")
        if form is InputFormat.AUTO:
            if not line.strip():
                continue
            form = InputFormat.JSONL if _is_object(line) else InputFormat.TEXT
        if form is InputFormat.TEXT:
            yield InputRow(str(number), [{"role": "user", "content": line}])
        elif line.strip():
            yield _parse(line, number, file)


def _is_object(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and ("text" in value or "messages" in value)


def _parse(line: str, number: int, file: Path | str) -> InputRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "One object a line, or --format text"
        raise DataError("not a JSON object", file=file, row=number, hint=hint) from error
    if not isinstance(value, dict) or ("text" in value) == ("messages" in value):
        raise DataError("needs either `text` or `messages`", file=file, row=number)
    if "text" in value:
        if not isinstance(value["text"], str):
            raise DataError("`text` is not a string", file=file, row=number)
        messages = [{"role": "user", "content": value["text"]}]
    else:
        messages = value["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DataError("`messages` is not a list of objects with role and content", file=file, row=number)
    return InputRow(str(value.get("id", number)), messages)
