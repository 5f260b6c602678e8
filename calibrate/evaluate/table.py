"""A table of numbers that explains its own columns."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Record", "Table"]

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns.

    Attributes:
        name: Stem of its files.
        title: What the figure shows, in one sentence.
        keys: Columns that identify a row -> meaning.
        values: Columns that were measured -> meaning. A column ``x_se`` is the standard error of ``x``.
        rows: Column -> str, int, float, bool, or None if there is nothing to measure. NaN becomes None.
    """

    name: str
    title: str
    keys: Mapping[str, str]
    values: Mapping[str, str]
    rows: tuple[Record, ...]

    def __post_init__(self) -> None:
        """Replace NaN, which neither JSON nor a spreadsheet has."""
        rows = ({name: None if _is_nan(value) else value for name, value in row.items()} for row in self.rows)
        object.__setattr__(self, "rows", tuple(rows))

    @property
    def columns(self) -> list[str]:
        """All columns, keys first."""
        return [*self.keys, *self.values]

    def where(self, **keys: Any) -> list[Record]:
        """Return the rows whose columns have these values, in their order."""
        return [row for row in self.rows if all(row[name] == value for name, value in keys.items())]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {**asdict(self), "rows": [dict(row) for row in self.rows]}

    def to_csv(self) -> str:
        """Return the rows as CSV under a line of column names; None is an empty field."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
