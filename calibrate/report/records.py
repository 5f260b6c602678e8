"""Nested records, such as the record of a training, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["RecordTable", "record_tables"]


@dataclass(frozen=True, slots=True)
class RecordTable:
    """A table of text.

    Attributes:
        title: Path in the record.
        columns: Names of the columns; empty if each row is a name and its value.
        rows: Text of each cell.
        chosen: Index of the alternative that was chosen; None if there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: int | None = None


def record_tables(record: Mapping[str, Any], *, title: str = "") -> Iterator[RecordTable]:
    """Yield a record's own values, and each list of alternatives and each nested record in it.

    Args:
        record: JSON-able values.
        title: Path of the record.
    """
    values = {key: value for key, value in record.items() if not _is_nested(value)}
    if values:
        yield RecordTable(title, (), tuple((_name(key), _text(value)) for key, value in values.items()))
    for key, value in record.items():
        inner = f"{title}, {_name(key)}" if title else _name(key)
        if isinstance(value, Mapping):
            yield from record_tables(value, title=inner)
        elif _is_nested(value):
            yield _alternatives(value, values, inner)


def _alternatives(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any], title: str) -> RecordTable:
    """Return a list of records as a table; chosen is the first that agrees with the values beside the list."""
    rows = [dict(_flat(row)) for row in rows]
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    shared = [key for key in columns if key in chosen]
    matches = [index for index, row in enumerate(rows) if shared and all(row.get(key) == chosen[key] for key in shared)]
    cells = tuple(tuple(_text(row.get(key, "")) for key in columns) for row in rows)
    return RecordTable(title, tuple(map(_name, columns)), cells, matches[0] if matches else None)


def _flat(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested records under the path to each."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key} ")
        else:
            yield path + key, value


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _name(key: str) -> str:
    return key.replace("_", " ")


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case None:
            return "none"
        case list() | tuple():
            return ", ".join(map(_text, value)) or "none"
        case _:
            return str(value)
