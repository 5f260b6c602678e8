"""Rows on which delegation went wrong, without their texts (figure 2 of the paper)."""

from __future__ import annotations

from typing import Final

import numpy as np

from calibrate.evaluate.grid import Grid
from calibrate.evaluate.methods import CERTIFIED
from calibrate.evaluate.table import Record, Table

__all__ = ["failures_table"]

_MOST: Final = 20  # rows of each case


def failures_table(grid: Grid, alpha: float) -> Table:
    """Return the worst rows of each case at one budget.

    ``uncertainty_wasted`` and ``ctd_wasted``: the expert spoils the right verdict of the probe on a delegated row.
    ``uncertainty_missed`` and ``ctd_missed``: the expert would have corrected the wrong verdict on a row that was not
    delegated.

    Args:
        grid: Rows and methods.
        alpha: Budget.
    """
    rows = grid.rows
    unsafe = rows.label == 1
    probe_right = (rows.p >= grid.tau) == unsafe
    cascade_right = (rows.merged >= grid.tau) == unsafe
    delegated = {name: grid.methods.delegate(name, alpha).rows for name in CERTIFIED}
    records: list[Record] = []
    for name, chosen in delegated.items():
        cases = {
            f"{name}_wasted": (chosen & probe_right & ~cascade_right, rows.value),
            f"{name}_missed": (~chosen & ~probe_right & cascade_right, -rows.value),
        }
        for case, (members, order) in cases.items():
            found = np.flatnonzero(members)
            for row in found[np.argsort(order[found], kind="stable")[:_MOST]].tolist():
                records.append(  # noqa: PERF401 - a comprehension of this size reads worse
                    {
                        "case": case,
                        "row": str(row + 1) if rows.name is None else rows.name[row],
                        "cases": int(found.size),
                        "group": None if rows.group is None else rows.group[row],
                        "label": int(rows.label[row]),
                        "p": float(rows.p[row]),
                        "expert": float(rows.expert[row]),
                        "d": float(rows.d[row]),
                        "value": float(rows.value[row]),
                        "uncertainty_delegates": bool(delegated["uncertainty"][row]),
                        "ctd_delegates": bool(delegated["ctd"][row]),
                    }
                )
    return Table(
        "failures",
        f"Rows on which delegation goes wrong at alpha = {alpha:g}, the worst {_MOST} of each case",
        {"case": "what went wrong", "row": "FILE:LINE of the row"},
        {
            "cases": "number of rows of this case, shown or not",
            "group": "its group",
            "label": "1 = unsafe",
            "p": "safety probe",
            "expert": "expert",
            "d": "predicted delegation value",
            "value": "true delegation value",
            "uncertainty_delegates": "whether certified uncertainty sends it to the expert",
            "ctd_delegates": "whether CTD sends it to the expert",
        },
        tuple(records),
    )
