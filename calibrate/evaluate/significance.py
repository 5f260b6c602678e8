"""Paired tests of CTD against the other methods, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy.special import ndtr

from calibrate.evaluate.curves import Cells
from calibrate.evaluate.figures import FIGURES
from calibrate.evaluate.table import Record, Table
from ctd_guardrail._typing import FloatArray

__all__ = ["RIVALS", "compare_methods", "holm"]


RIVALS: Final = ("uncertainty", "random", "probe")
"""Methods that CTD is compared with."""


def compare_methods(cells: Cells, alphas: Sequence[float]) -> Table:
    """Return z-tests of CTD against its rivals on the same rows, with errors over clusters."""
    records: list[Record] = []
    for figure in FIGURES:
        for versus in RIVALS:
            for alpha in alphas:
                difference = cells["ctd", alpha].figures[figure] - cells[versus, alpha].figures[figure]
                value, error = difference.value, difference.error
                keys = {"figure": figure, "versus": versus, "alpha": alpha}
                values = {"difference": value, "difference_se": error, "p": _two_sided(value, error)}
                records.append(keys | values)
    p = np.array([record["p"] for record in records])
    adjusted: list[Any] = holm(np.where(np.isfinite(p), p, 1.0)).tolist()
    return Table(
        "tests",
        "CTD minus each rival at the same budget; paired z-test, Holm's correction over all rows of this table",
        {"figure": "what is compared", "versus": "the other method", "alpha": "budget"},
        {
            "difference": "CTD - the other method; for Brier and missed harm, negative is better",
            "difference_se": "its standard error",
            "p": "two-sided p-value of no difference",
            "p_holm": "p after Holm's correction",
        },
        tuple({**record, "p_holm": value} for record, value in zip(records, adjusted, strict=True)),
    )


def holm(p: FloatArray) -> FloatArray:
    """Return p-values that control the probability of any false rejection (Holm 1979), shape [m]."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _two_sided(difference: float, error: float) -> float:
    if not error > 0:
        return 1.0 if difference == 0 else float("nan")
    return float(2.0 * ndtr(-abs(difference) / error))
