"""The benchmark's figures as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from calibrate.evaluate import ALPHAS, METHODS

__all__ = ["Table", "figure_tables", "group_table", "margin_table", "mean_and_error", "violation_table"]

Row = dict[str, Any]
FloatArray = NDArray[np.float64]

_BUDGETS = tuple(f"{alpha:g}" for alpha in ALPHAS)
_FIGURES = (("auroc", "AUROC"), ("accuracy", "Accuracy"), ("rate", "Realised rate"))


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: What it shows.
        header: Column names.
        rows: Cells.
    """

    title: str
    header: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        # Narrow enough for 80 columns.
        table = RichTable(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, name in enumerate(self.header):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown, under its title."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join([f"{self.title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def mean_and_error(values: Iterable[float], *, signed: bool = False) -> str:
    """Return the mean and its standard error over seeds, in points of 100."""
    array = 100.0 * np.fromiter(values, dtype=np.float64)
    mean = f"{array.mean():+.1f}" if signed else f"{array.mean():.1f}"
    return mean if array.size == 1 else f"{mean}±{array.std(ddof=1) / np.sqrt(array.size):.1f}"


def figure_tables(rows: Sequence[Row]) -> list[Table]:
    """Return a table of each figure: methods against budgets."""
    return [
        Table(
            f"{name}, in points of 100",
            ["alpha", *_BUDGETS],
            [
                [method, *(mean_and_error(_select(rows, method, alpha, figure)) for alpha in ALPHAS)]
                for method in METHODS
            ],
        )
        for figure, name in _FIGURES
    ]


def margin_table(rows: Sequence[Row]) -> Table:
    """Return what CTD has over calibrated uncertainty, paired by seed."""

    def margins(figure: str, alpha: float) -> FloatArray:
        margin: FloatArray = _select(rows, "ctd", alpha, figure) - _select(rows, "uncertainty", alpha, figure)
        return margin

    table = Table(
        "CTD minus calibrated uncertainty, in points of 100 (Brier: less is better)",
        ["alpha", *_BUDGETS, "mean"],
    )
    for figure, name in (*_FIGURES[:2], ("brier", "Brier")):
        columns = [margins(figure, alpha) for alpha in ALPHAS]
        everywhere = np.mean(columns, axis=0)
        table.rows.append([name, *(mean_and_error(column, signed=True) for column in [*columns, everywhere])])
    return table


def group_table(groups: Sequence[Row]) -> Table:
    """Return the share of each group that CTD delegates: the budget holds over the mixture, not in each."""
    names = list(dict.fromkeys(row["group"] for row in groups))
    return Table(
        "Share of each group that CTD delegates, in points of 100",
        ["alpha", *_BUDGETS],
        [
            [
                name,
                *(
                    mean_and_error(row["rate"] for row in groups if row["group"] == name and row["alpha"] == alpha)
                    for alpha in ALPHAS
                ),
            ]
            for name in names
        ],
    )


def violation_table(violations: Sequence[Row]) -> Table:
    """Return how often the realised rate exceeded alpha, beside what to expect."""
    splits, rows, delta = (violations[0][key] for key in ("splits", "rows", "delta"))
    lines = {
        "CTD exceeds": "ctd",
        "uncertainty exceeds": "uncertainty",
        "expected": "expected",
        "true rate exceeds": "exact",
        "CTD, mean rate": "mean_rate",
    }
    return Table(
        f"{splits} random splits, realised rate on {rows} rows, delta {100 * delta:g}, in points of 100",
        ["alpha", *_BUDGETS],
        [[name, *(f"{100 * row[key]:.1f}" for row in violations)] for name, key in lines.items()],
    )


def _select(rows: Sequence[Row], method: str, alpha: float, figure: str) -> FloatArray:
    """Return one figure of one cell, by seed."""
    found = {row["seed"]: row[figure] for row in rows if row["method"] == method and row["alpha"] == alpha}
    return np.array([found[seed] for seed in sorted(found)])
