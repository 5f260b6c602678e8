"""A table of figures, printed as Markdown and written as CSV."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Cell", "Table", "add_csv_option"]

Cell = str | int | float | None
"""One value. A float has been rounded to the digits that are shown; None is an empty cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows and named columns.

    Attributes:
        columns: Names, with the unit as the last word: ``p50_ms``.
        rows: One value for each column.
    """

    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Append one row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns: {cells}")
        self.rows.append(cells)

    def extend(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Append rows."""
        for row in rows:
            self.add(*row)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *(list(map(_text, row)) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def csv(self) -> str:
        """Return the table as CSV with a header."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(list(map(_text, row)) for row in self.rows)
        return stream.getvalue()

    def publish(self, file: Path | None) -> None:
        """Print the table, and write it to a CSV file if one is named."""
        print(self.markdown(), flush=True)
        if file is not None:
            self.write(file)

    def write(self, file: Path) -> None:
        """Write the table to a CSV file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.csv(), encoding="utf-8")


def add_csv_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--csv``: the file that :meth:`Table.publish` writes."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures to this CSV file")


def _text(cell: Cell) -> str:
    return "" if cell is None else str(cell)
