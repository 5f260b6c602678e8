"""The benchmark's figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.cube import standard_error
from benchmarks.paper.protocols import TOP_SIGNALS
from benchmarks.paper.results import Index, Result
from calibrate.evaluate import ALPHAS
from calibrate.evaluate.methods import BATCHES

__all__ = [
    "Table",
    "delegation_value_table",
    "details",
    "harm_table",
    "levels_table",
    "margin_table",
    "paper_table",
    "recipes_table",
    "splits_table",
]

FloatArray = NDArray[np.float64]

_SHOWN: Final = 0.2
_PAPER_SHOWN: Final = 0.3
_NAMES: Final = {
    "probe": "probe",
    "expert": "expert",
    "random": "random",
    "uncertainty": "uncertainty",
    "uncertainty_rank": "median rank",
    "ridge": "ridge",
    "ctd": "CTD",
    "oracle": "oracle",
}
_JUDGED: Final = ("auroc", "accuracy", "brier")
_VARIED: Final = ("probe", "uncertainty", "ctd")
_DETAILED: Final = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "brier": "Brier score",
    "missed_harm": "Missed harm",
    "rate": "Realised rate",
}


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

    def markdown(self) -> str:
        """Return the table as Markdown, under its title."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join([f"{self.title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def margin_table(index: Index) -> Table:
    """Return what CTD has over calibrated uncertainty in both its forms, and over the paper's ridge."""
    table = Table(
        "CTD minus other methods, mean over alpha, in points of 100: AUROC / accuracy",
        ["setting, expert", "uncertainty", "median-rank uncertainty", "ridge", "random", "refitted probe alone"],
    )
    for result in index.main:
        cells = [
            _joined(_mean_gain(result, over, figure) for figure in _JUDGED[:2])
            for over in ("uncertainty", "uncertainty_rank", "ridge", "random")
        ]
        refit = index.refitted(result).own
        over_refit = (
            (result.own.get("ctd", figure) - refit.get("probe", figure)).mean(axis=1) for figure in _JUDGED[:2]
        )
        table.rows.append([result.name, *cells, _joined(over_refit)])
    return table


def levels_table(index: Index, *figures: str) -> Table:
    """Return absolute figures of each method at one budget."""
    title = " / ".join(_DETAILED[figure] for figure in figures)
    table = Table(
        f"{title} at alpha {_SHOWN:g}, in points of 100",
        ["setting, expert", *_NAMES.values(), "refitted probe alone", "refitted probe, CTD"],
    )
    place = ALPHAS.index(_SHOWN)

    def shown(result: Result, method: str) -> str:
        return " / ".join(f"{100 * result.own.get(method, figure)[:, place].mean():.1f}" for figure in figures)

    for result in index.main:
        refit = index.refitted(result)
        table.rows.append(
            [
                result.name,
                *(shown(result, method) for method in _NAMES),
                shown(refit, "probe"),
                shown(refit, "ctd"),
            ]
        )
    return table


def recipes_table(index: Index, recipes: Sequence[str]) -> Table:
    """Return what becomes of the probe, the cascade and its margin with these recipes, on the same seeds."""
    table = Table(
        "Recipes, on the same seeds: the probe alone, CTD, and in brackets CTD minus uncertainty, mean over alpha: "
        "AUROC / accuracy, in points of 100",
        ["setting, expert", *recipes],
    )
    for result in index.main:
        variants = [other for other in index.variants(result) if other.recipe in recipes]
        seeds = min(len(other.own.values) for other in variants)
        if len(variants) == len(recipes):
            table.rows.append([result.name, *(_probe_and_cascade(other.first(seeds)) for other in variants)])
    return table


def _probe_and_cascade(result: Result) -> str:
    levels = [
        " / ".join(f"{100 * result.own.get(method, figure).mean():.1f}" for figure in _JUDGED[:2])
        for method in ("probe", "ctd")
    ]
    gains = _joined(_mean_gain(result, "uncertainty", figure) for figure in _JUDGED[:2])
    return f"{levels[0]} → {levels[1]} ({gains})"


def delegation_value_table(index: Index) -> Table:
    """Return how well d predicts v, and its share of the oracle's area, beside the paper's ridge on the same rows."""
    table = Table(
        "The delegation value beside the paper's ridge on the same rows, in points of 100",
        ["setting, expert", "Spearman: ridge", "CTD", "difference", "FAIC: ridge", "CTD", "difference"],
    )
    for result in index.main:
        ours, ridge = result.spearman.T
        areas = [result.own.faic(method) for method in ("ridge", "ctd")]
        table.rows.append(
            [
                result.name,
                *(mean_and_error(values) for values in (ridge, ours)),
                mean_and_error(ours - ridge, signed=True),
                *(mean_and_error(values) for values in areas),
                mean_and_error(areas[1] - areas[0], signed=True),
            ]
        )
    means = [np.mean([result.spearman[:, column].mean() for result in index.main]) for column in (1, 0)]
    faics = [np.mean([result.own.faic(method).mean() for result in index.main]) for method in ("ridge", "ctd")]
    cells = [[f"{100 * low:.1f}", f"{100 * high:.1f}", f"{100 * (high - low):+.1f}"] for low, high in (means, faics)]
    table.rows.append(["mean", *cells[0], *cells[1]])
    return table


def harm_table(index: Index) -> Table:
    """Return how often, and how far, methods fall below the probe alone."""
    columns = {"uncertainty": "uncertainty", "ridge": "ridge", "ctd": "CTD", "best": "CTD, best certified threshold"}
    table = Table(
        "Cells (settings x experts x alpha) more than two standard errors below the probe alone, and the largest loss "
        "in points of 100, by AUROC / accuracy / Brier. `best`: the certified threshold that is best by the figure in "
        "question on the calibration rows",
        ["settings", "cells", *(f"{name}{part}" for name in columns.values() for part in ("", ", largest loss"))],
    )
    families = list(dict.fromkeys(result.family for result in index.main))
    groups = {family: [result for result in index.main if result.family == family] for family in families}
    for name, members in (*groups.items(), ("all", index.main)):
        row = [name, str(len(members) * len(ALPHAS))]
        for method in columns:
            found = [_harm(member, method) for member in members]
            row.append(" / ".join(str(count) for count in np.sum([counts for counts, _ in found], axis=0)))
            largest = np.max([worst for _, worst in found], axis=0).clip(0.0)
            row.append(" / ".join(f"{100 * loss:.2f}" for loss in largest))
        table.rows.append(row)
    return table


def paper_table(index: Index) -> Table:
    """Return the paper's protocol: its own methods, and this package's delegation value in place of its ridge."""
    names = {**_NAMES, "ridge": "CTD of the paper", "ctd": "with this d"}
    tops = {f"{signal}_top_{size}": f"{signal}, top of {size}" for signal in TOP_SIGNALS for size in BATCHES}
    shown = {method: name for method, name in names.items() if method != "expert"} | tops
    table = Table(
        f"The paper's protocol at alpha {_PAPER_SHOWN:g}: AUROC / accuracy, in points of 100",
        ["setting, expert", *shown.values()],
    )
    for result in index.main:
        if result.paper is None:
            continue
        place = result.paper.alphas.index(_PAPER_SHOWN)
        cells = [
            " / ".join(f"{100 * result.paper.get(method, figure)[:, place].mean():.1f}" for figure in _JUDGED[:2])
            for method in shown
        ]
        table.rows.append([result.name, *cells])
    return table


def splits_table(index: Index) -> Table:
    """Return how often the realised rate exceeded alpha, and in brackets how often it should on that many rows."""
    table = Table(
        "Share of random calibration splits in which the realised rate exceeds alpha, and in brackets what the theory "
        "expects on that many rows, in points of 100",
        ["setting, expert", "splits", *(f"alpha {alpha:g}" for alpha in ALPHAS)],
    )
    for result in index.main:
        seen, expected, _ = result.splits
        cells = [f"{100 * one:.1f} ({100 * other:.1f})" for one, other in zip(seen, expected, strict=True)]
        table.rows.append([result.name, str(result.splits_count), *cells])
    return table


def details(index: Index, result: Result) -> list[Table]:
    """Return every figure of one setting and expert: methods against budgets, with the other recipes below."""
    refit = index.refitted(result)
    lines: list[tuple[str, Result, str]] = [(name, result, method) for method, name in _NAMES.items()]
    lines += [(f"CTD, best by {_DETAILED[figure]}", result, f"ctd_{figure}") for figure in _JUDGED]
    lines += [("refitted probe alone", refit, "probe"), ("refitted probe, CTD", refit, "ctd")]
    for other in index.variants(result)[1:]:
        lines += [(f"{name}, {other.recipe}", other, method) for method, name in _NAMES.items() if method in _VARIED]
    tables = []
    for figure, title in _DETAILED.items():
        table = Table(f"{title}, in points of 100", ["alpha", *(f"{alpha:g}" for alpha in ALPHAS)])
        for name, of, method in lines:
            table.rows.append([name, *map(mean_and_error, of.own.get(method, figure).T)])
        tables.append(table)
    return tables


def mean_and_error(values: Iterable[float], *, signed: bool = False) -> str:
    """Return the mean and its standard error over seeds, in points of 100."""
    array = 100.0 * np.fromiter(values, dtype=np.float64)
    mean = f"{array.mean():+.1f}" if signed else f"{array.mean():.1f}"
    return mean if array.size == 1 else f"{mean}±{standard_error(array):.1f}"


def _mean_gain(result: Result, over: str, figure: str) -> FloatArray:
    """Return the gain of CTD over a method by seed, mean over alpha, shape [seeds]."""
    gain: FloatArray = result.own.gain("ctd", over, figure).mean(axis=1)
    return gain


def _joined(columns: Iterable[FloatArray]) -> str:
    return " / ".join(mean_and_error(column, signed=True) for column in columns)


def _harm(result: Result, method: str) -> tuple[list[int], list[float]]:
    """Return in how many cells the method is below the probe by two standard errors, and by how much at most."""
    counts, worst = [], []
    for figure in _JUDGED:
        loss = -(result.own.chosen_gain(figure) if method == "best" else result.own.gain(method, "probe", figure))
        counts.append(int(np.sum(loss.mean(axis=0) > 2.0 * standard_error(loss))))
        worst.append(float(loss.mean(axis=0).max()))
    return counts, worst
