"""The cascade's figures against its budget, and the area under each curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from calibrate.evaluate.figures import FIGURES, Figure, divide, integrate
from calibrate.evaluate.grid import Cell, Grid
from calibrate.evaluate.table import Record, Table

__all__ = ["Cells", "area_table", "cascade_table", "columns_with_errors", "figures_with_errors", "read_cells"]

_AREA_FIGURES: Final = ("auroc", "accuracy", "brier")

Cells = Mapping[tuple[str, float], Cell]
"""(method, alpha) -> cell of the grid."""


def read_cells(grid: Grid, budgets: Sequence[float]) -> Cells:
    """Return the cells of every method at these budgets.

    Raises:
        ConfigError: A budget lies outside (0, 1).
        DataError: All rows have one label.
    """
    return {(name, alpha): grid.cell(name, alpha) for name in grid.methods.names for alpha in budgets}


def cascade_table(cells: Cells) -> Table:
    """Return figures 3, 4, 7, 8, 12 and 13 of the paper as one table."""
    records = tuple(
        {
            "method": method,
            "alpha": alpha,
            "rate": cell.figures["rate"].value,
            "threshold": cell.threshold,
            **figures_with_errors(cell.figures),
        }
        for (method, alpha), cell in cells.items()
    )
    return Table(
        "cascade",
        "The cascade's figures against its budget, for every method",
        {"method": "how the rows that go to the expert are chosen", "alpha": "budget"},
        {
            "rate": "share of the rows that went to the expert",
            "threshold": "certified threshold, if the method has one",
            **columns_with_errors(),
        },
        records,
    )


def columns_with_errors() -> dict[str, str]:
    """Return a column for each figure and one for its standard error."""
    columns: dict[str, str] = {}
    for name, meaning in FIGURES.items():
        columns |= {name: meaning, f"{name}_se": f"standard error of {name}, over clusters"}
    return columns


def figures_with_errors(figures: Mapping[str, Figure]) -> Record:
    """Return each figure and its standard error as columns of a row."""
    record: Record = {}
    for name in FIGURES:
        record |= {name: figures[name].value, f"{name}_se": figures[name].error}
    return record


def area_table(cells: Cells) -> Table:
    """Return, for each figure, the area that a method wins over the probe as a share of the oracle's.

    For CTD this is FAIC = area(CTD - probe) / area(oracle - probe). Areas are by the trapezoid rule from budget 0, at
    which every cascade is its probe, to the largest budget. The error of the ratio is by the delta method.
    """
    budgets = sorted({alpha for _, alpha in cells})
    names = [name for name in dict.fromkeys(name for name, _ in cells) if name not in {"probe", "expert", "oracle"}]
    records = []
    for figure in _AREA_FIGURES:
        bound = _area(cells, "oracle", figure, budgets)
        for method in names:
            area = _area(cells, method, figure, budgets)
            share = divide(area, bound)
            records.append(
                {
                    "figure": figure,
                    "method": method,
                    "area": area.value,
                    "share": share.value,
                    "share_se": share.error,
                }
            )
    return Table(
        "faic",
        f"Area won over the probe alone for budgets up to {budgets[-1]:g}, as a share of the oracle's",
        {"figure": "what the curve shows", "method": "how the rows are chosen"},
        {
            "area": "area between the method's curve and the probe's; positive is better, also for Brier",
            "share": "area / the oracle's area; for CTD this is FAIC",
            "share_se": "standard error of share, over clusters",
        },
        tuple(records),
    )


def _area(cells: Cells, method: str, figure: str, budgets: Sequence[float]) -> Figure:
    """Return the area over the probe, positive where the method is better."""
    probe = cells["probe", budgets[0]].figures[figure]
    gains = [probe - probe, *(cells[method, alpha].figures[figure] - probe for alpha in budgets)]
    area = integrate(gains, [0.0, *budgets])
    return -area if figure == "brier" else area
