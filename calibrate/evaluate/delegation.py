"""How well a signal finds the rows on which the expert improves the score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from scipy.special import betaincinv

from calibrate.evaluate.figures import mean_of
from calibrate.evaluate.grid import Grid
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table
from ctd_guardrail._typing import BoolArray, FloatArray
from ctd_guardrail.policy.guarantees import largest_count

__all__ = [
    "BINS",
    "fixes_table",
    "gain_table",
    "groups_table",
    "proportion_interval",
    "reliability_table",
]


BINS: Final = 10
"""Number of bins of d. They hold equally many rows, except that ties stay together."""

_TAIL: Final = 0.025  # on each side of a 95% interval
_SHARES: Final = (0.02, *(i / 20 for i in range(1, 21)))
_BY_GROUP: Final = {"group": "group of the rows; `all` if they have none"}
_BY_BIN: Final = {"bin": "bin of d, from the lowest"}


def gain_table(grid: Grid) -> Table:
    """Return figure 5 of the paper: the mean true v of the rows that each signal ranks highest."""
    rows = grid.rows
    records = [
        {"signal": signal, "share": share, **_mean("value", rows.value, grid.methods.top(signal, count), rows)}
        for signal in grid.methods.signals
        for share in _SHARES
        if (count := largest_count(rows.label.size, share))
    ]
    return Table(
        "gain",
        "Mean true delegation value of the rows that a signal ranks highest; the oracle is the bound",
        {"signal": "signal that ranks the rows", "share": "share k/N of the rows, from the top"},
        {"value": "mean of v over them", "value_se": "standard error of value"},
        tuple(records),
    )


def groups_table(rows: ScoredRows) -> Table:
    """Return figure 9 of the paper: for each group, the mean of d against the mean of v."""
    group = np.array(["all"] * rows.label.size if rows.group is None else rows.group)
    records = [
        {
            "group": name,
            "rows": int((group == name).sum()),
            "unsafe": float(rows.label[group == name].mean()),
            **_mean("d", rows.d, group == name, rows),
            **_mean("value", rows.value, group == name, rows),
        }
        for name in np.unique(group).tolist()
    ]
    return Table(
        "groups",
        "Predicted against true delegation value, group by group",
        _BY_GROUP,
        {
            "rows": "number of rows",
            "unsafe": "share of unsafe rows",
            "d": "mean of d",
            "d_se": "standard error of d",
            "value": "mean of the true v",
            "value_se": "standard error of value",
        },
        tuple(records),
    )


def reliability_table(rows: ScoredRows) -> Table:
    """Return the mean of the true v in bins of d."""
    records = [
        {
            "bin": number,
            "rows": int(chosen.sum()),
            "d": float(rows.d[chosen].mean()),
            **_mean("value", rows.value, chosen, rows),
        }
        for number, chosen in enumerate(_bins(rows.d))
    ]
    return Table(
        "reliability",
        "Mean true delegation value by d; on the diagonal, d is calibrated",
        _BY_BIN,
        {
            "rows": "number of rows",
            "d": "mean of d",
            "value": "mean of the true v",
            "value_se": "standard error of value",
        },
        tuple(records),
    )


def fixes_table(grid: Grid) -> Table:
    """Return how often the expert corrects the probe's verdict, and how often it spoils it, in bins of d."""
    rows = grid.rows
    unsafe = rows.label == 1
    probe_right = (rows.p >= grid.tau) == unsafe
    cascade_right = (rows.merged >= grid.tau) == unsafe
    outcomes = {"fixes": ~probe_right & cascade_right, "spoils": probe_right & ~cascade_right}
    records = [
        {
            "bin": number,
            "rows": int(chosen.sum()),
            "d": float(rows.d[chosen].mean()),
            **{
                column: value
                for name, outcome in outcomes.items()
                for column, value in _proportion(name, int(outcome[chosen].sum()), int(chosen.sum())).items()
            },
        }
        for number, chosen in enumerate(_bins(rows.d))
    ]
    return Table(
        "fixes",
        "How often the expert corrects the probe's verdict, and how often it spoils it, by d",
        _BY_BIN,
        {
            "rows": "number of rows",
            "d": "mean of d",
            "fixes": "share of them on which the probe is wrong and the expert right",
            "fixes_low": "lower end of its 95% interval (Clopper and Pearson; rows taken as independent)",
            "fixes_high": "upper end",
            "spoils": "share of them on which the probe is right and the expert wrong",
            "spoils_low": "lower end of its 95% interval",
            "spoils_high": "upper end",
        },
        tuple(records),
    )


def proportion_interval(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95% confidence interval of a proportion (Clopper and Pearson 1934)."""
    low = float(betaincinv(count, total - count + 1, _TAIL)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1.0 - _TAIL)) if count < total else 1.0
    return low, high


def _proportion(name: str, count: int, total: int) -> Record:
    low, high = proportion_interval(count, total)
    return {name: count / total, f"{name}_low": low, f"{name}_high": high}


def _mean(name: str, values: FloatArray, chosen: BoolArray, rows: ScoredRows) -> Record:
    mean = mean_of(values[chosen], rows.clusters[chosen])
    return {name: mean.value, f"{name}_se": mean.error}


def _bins(d: FloatArray) -> Iterator[BoolArray]:
    """Yield the rows of each bin that is not empty, from the lowest d."""
    edges = np.unique(np.quantile(d, np.linspace(0.0, 1.0, BINS + 1)))
    number = np.clip(np.searchsorted(edges, d, side="right") - 1, 0, max(0, edges.size - 2))
    for i in range(max(1, edges.size - 1)):
        if (number == i).any():
            yield number == i
