"""The record that every policy carries: six methods at a few budgets, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibrate.evaluate.figures import FIGURES
from calibrate.evaluate.grid import Cell, Grid
from calibrate.evaluate.methods import METHODS

__all__ = ["record_grid"]


def record_grid(grid: Grid, alphas: Sequence[float]) -> dict[str, Any]:
    """Return the cells of :data:`METHODS` at some budgets as JSON-able values.

    Each cell has its figures and these fields:

    - ``gain``: mean of v over the delegated rows, 0 without any.
    - ``threshold`` and ``k``: of the certificate, null without one.
    - ``group_rates``: delegated share of each group, null without groups. The budget holds for all groups together.

    Raises:
        ConfigError: An alpha or delta lies outside (0, 1), or an alpha outside the range of the guarantee.
        DataError: All rows have one label.
    """
    rows = grid.rows
    return {
        "rows": rows.label.size,
        "unsafe": int(rows.label.sum()),
        "tau": grid.tau,
        "delta": grid.delta,
        "cells": [_record_cell(grid, grid.cell(method, alpha)) for alpha in alphas for method in METHODS],
    }


def _record_cell(grid: Grid, cell: Cell) -> dict[str, Any]:
    value = grid.rows.value[cell.delegated]
    return {
        "method": cell.method,
        "alpha": cell.alpha,
        **{name: cell.figures[name].value for name in ("rate", *FIGURES)},
        "gain": float(value.mean()) if value.size else 0.0,
        "threshold": cell.threshold,
        "k": cell.k,
        "group_rates": grid.group_rates(cell.delegated) or None,
    }
