"""How well a signal finds the rows on which the expert is worth its call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from calibrate.evaluate.influence import cluster_error, mean_error, measure_with_influence
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table
from ctd_guardrail.policy.guarantees import largest_count

__all__ = [
    "BINS",
    "fixes_table",
    "gain_table",
    "groups_table",
    "proportion_interval",
    "reliability_table",
    "targets_table",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BINS: Final = 10
"""Bins of d, each with as many rows as the others but for ties, which stay together."""

_SHARES: Final = (0.02, *(i / 20 for i in range(1, 21)))
_SIGNALS: Final = ("uncertainty", "uncertainty_rank", "ctd", "oracle")
_BY_GROUP: Final = {"group": "group of the rows; `all` where they have none"}
_BY_BIN: Final = {"bin": "bin of d, from the lowest"}


def gain_table(rows: ScoredRows, methods: Methods) -> Table:
    """Return figure 5 of the paper: the mean true v of the rows that each signal ranks highest."""
    n = rows.label.size
    records = [
        {"signal": signal, "share": share, **_mean("value", rows.value, methods.top(signal, count), rows)}
        for signal in _SIGNALS
        for share in _SHARES
        if (count := largest_count(n, share))
    ]
    return Table(
        "gain",
        "Mean true delegation value of the rows that a signal ranks highest; the oracle is the bound",
        {"signal": "what ranks the rows", "share": "share k/N of the rows, from the top"},
        {"value": "mean of v over them", "value_se": "standard error of value"},
        tuple(records),
    )


def targets_table(rows: ScoredRows, alphas: Sequence[float], *, tau: float) -> Table:
    """Return figure 6 of the paper: probes of the continuous and of the binary target, each by its top share."""
    if rows.binary is None:
        records: list[Record] = []
    else:
        records = list(_compare_targets(rows, rows.binary, alphas, tau=tau))
    return Table(
        "targets",
        "Delegation probe of the continuous target v minus one of the binary target, on equally many rows",
        {"figure": "what is compared", "alpha": "share of the rows that go to the expert, from the top of each signal"},
        {
            "continuous": "figure when d is trained on v",
            "binary": "figure when d is trained on 1[probe wrong and expert right]",
            "difference": "continuous - binary",
            "difference_se": "standard error of difference, over clusters",
        },
        tuple(records),
    )


def _compare_targets(rows: ScoredRows, binary: FloatArray, alphas: Sequence[float], *, tau: float) -> Iterator[Record]:
    n = rows.label.size
    for alpha in alphas:
        tops = [np.argsort(-signal, kind="stable")[: largest_count(n, alpha)] for signal in (rows.d, binary)]
        masks = [np.isin(np.arange(n), top) for top in tops]
        measured = [measure_with_influence(rows.label, rows.cascade_score(mask), tau=tau) for mask in masks]
        for figure in ("auroc", "accuracy", "brier"):
            one, other = (getattr(metrics, figure) for metrics, _ in measured)
            influence = measured[0][1][figure] - measured[1][1][figure]
            yield _difference(figure, alpha, one=one, other=other, influence=influence, rows=rows)
        # The sum of v over the delegated rows is a mean over all rows: what the budget has bought.
        one, other = (float((rows.value * mask).mean()) for mask in masks)
        influence = rows.value * masks[0] - rows.value * masks[1] - (one - other)
        yield _difference("bought_value", alpha, one=one, other=other, influence=influence, rows=rows)


def _difference(
    figure: str, alpha: float, *, one: float, other: float, influence: FloatArray, rows: ScoredRows
) -> Record:
    return {
        "figure": figure,
        "alpha": alpha,
        "continuous": one,
        "binary": other,
        "difference": one - other,
        "difference_se": cluster_error(influence, rows.clusters),
    }


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
    """Return the calibration plot of d: in bins of d, the mean of the true v."""
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
        "True delegation value where d takes this value; on the diagonal, d means what it says",
        _BY_BIN,
        {
            "rows": "number of rows",
            "d": "mean of d",
            "value": "mean of the true v",
            "value_se": "standard error of value",
        },
        tuple(records),
    )


def fixes_table(rows: ScoredRows, *, tau: float) -> Table:
    """Return how often the expert fixes, and how often it spoils, the probe's verdict in bins of d."""
    unsafe = rows.label == 1
    probe_right = (rows.p >= tau) == unsafe
    cascade_right = (rows.cascade_score(np.ones_like(unsafe)) >= tau) == unsafe
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
        "How often the expert repairs the probe's verdict, and how often it spoils it, where d takes this value",
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


def proportion_interval(count: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of a proportion (Clopper and Pearson 1934)."""
    tail = (1.0 - level) / 2.0
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1.0 - tail)) if count < total else 1.0
    return low, high


def _proportion(name: str, count: int, total: int) -> Record:
    low, high = proportion_interval(count, total)
    return {name: count / total, f"{name}_low": low, f"{name}_high": high}


def _mean(name: str, values: FloatArray, chosen: BoolArray, rows: ScoredRows) -> Record:
    mean, error = mean_error(values, chosen, rows.clusters)
    return {name: mean, f"{name}_se": error}


def _bins(d: FloatArray) -> Iterator[BoolArray]:
    """Yield the rows of each bin that has any, from the lowest d."""
    edges = np.unique(np.quantile(d, np.linspace(0.0, 1.0, BINS + 1)))
    number = np.clip(np.searchsorted(edges, d, side="right") - 1, 0, max(0, edges.size - 2))
    for i in range(max(1, edges.size - 1)):
        if (number == i).any():
            yield number == i
