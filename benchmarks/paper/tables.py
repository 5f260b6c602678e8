"""Figures of the benchmark as tables, in points of 100."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, product
from typing import Final

import numpy as np

from benchmarks.paper.cube import FIGURES, Cube, standard_error
from benchmarks.paper.results import Index, Result
from benchmarks.table import Cell, Table
from calibrate.evaluate.grid import ALPHAS
from ctd_guardrail._typing import FloatArray

__all__ = ["TABLES", "targets"]


_WITHOUT_BUDGET: Final = ("probe", "expert")
_JUDGED: Final = ("auroc", "accuracy", "brier")
_RANKED: Final = ("auroc", "accuracy")
_VARIED: Final = ("probe", "uncertainty", "ctd")
_RIVALS: Final = ("uncertainty", "uncertainty_rank", "ridge", "random")
_HARMING: Final = ("uncertainty", "ridge", "ctd", "ctd_best")
_ALL: Final = "all"
_MEAN: Final = ("mean", "standard_error")
_WIDE: Final = tuple(chain.from_iterable((figure, f"{figure}_standard_error") for figure in FIGURES))


def runs(index: Index) -> Table:
    """Return how many seeds each setting, expert and recipe has, and which setting refits its probe."""
    table = Table(["setting", "expert", "recipe", "seeds", "refits"])
    for result in index.main:
        table.extend(
            (other.setting, other.expert, other.recipe, len(other.own.values), other.refit_of)
            for other in index.variants(result)
        )
    return table


def figures(index: Index) -> Table:
    """Return every figure of every method with the first recipe: one row for each method and budget.

    Where the refitted probe has no setting of its own, its figures are under ``refitted_probe`` and ``refitted_ctd``.
    """
    table = Table(["setting", "expert", "method", "alpha", *_WIDE])
    for result in index.main:
        key = (result.setting, result.expert)
        table.extend((*key, *row) for row in _all_figures(result.own, result.own.methods))
        refit = index.refitted(result)
        if not refit.setting:
            rows = _all_figures(refit.own, ("probe", "ctd"))
            table.extend((*key, f"refitted_{method}", *row) for method, *row in rows)
    return table


def recipes(index: Index) -> Table:
    """Return every figure of the probe, of uncertainty and of CTD with the recipes after the first."""
    table = Table(["setting", "expert", "recipe", "method", "alpha", *_WIDE])
    for result in index.main:
        for other in index.variants(result)[1:]:
            key = (other.setting, other.expert, other.recipe)
            table.extend((*key, *row) for row in _all_figures(other.own, _VARIED))
    return table


def recipes_on_equal_seeds(index: Index) -> Table:
    """Return what the recipes of one comparison give on the seeds that all of them ran, mean over alpha."""
    table = Table(["setting", "expert", "seeds", "recipe", "method", "figure", *_MEAN])
    for result, names in product(index.main, index.comparisons):
        variants = [other for other in index.variants(result) if other.recipe in names]
        if len(variants) < len(names):
            continue
        seeds = min(len(other.own.values) for other in variants)
        for other in variants:
            own = other.first(seeds).own
            key = (other.setting, other.expert, seeds, other.recipe)
            for figure in _RANKED:
                for method in ("probe", "ctd"):
                    table.add(*key, method, figure, *_summary(own.get(method, figure).mean(axis=1)))
                table.add(*key, "ctd - uncertainty", figure, *_summary(_gain(own, "uncertainty", figure)))
    return table


def margins(index: Index) -> Table:
    """Return CTD minus other methods on the same rows, mean over alpha."""
    table = Table(["setting", "expert", "over", "figure", *_MEAN])
    for result in index.main:
        refit = index.refitted(result).own
        for figure in _RANKED:
            for over in _RIVALS:
                table.add(result.setting, result.expert, over, figure, *_summary(_gain(result.own, over, figure)))
            gain = (result.own.get("ctd", figure) - refit.get("probe", figure)).mean(axis=1)
            table.add(result.setting, result.expert, "refitted_probe", figure, *_summary(gain))
    return table


def delegation_value(index: Index) -> Table:
    """Return the rank correlation of d with v and its share of the oracle's area, beside the paper's ridge."""
    table = Table(["setting", "expert", "method", "figure", *_MEAN])
    for result in index.main:
        ours, ridge = result.spearman.T
        found = {"spearman": (ridge, ours), "faic": (result.own.faic("ridge"), result.own.faic("ctd"))}
        for figure, (theirs, own) in found.items():
            for method, values in (("ridge", theirs), ("ctd", own), ("ctd - ridge", own - theirs)):
                table.add(result.setting, result.expert, method, figure, *_summary(values))
    return table


def harm(index: Index) -> Table:
    """Return how often, and by how much, methods fall below the probe alone.

    A cell is a setting, an expert and an alpha. It counts as harmed if the loss exceeds two standard errors.
    ``ctd_best`` is CTD at the certified threshold that is best by this figure on the calibration rows.
    """
    table = Table(["settings", "cells", "method", "figure", "harmed", "largest_loss"])
    families = list(dict.fromkeys(result.family for result in index.main))
    groups = {family: [result for result in index.main if result.family == family] for family in families}
    for name, members in (*groups.items(), (_ALL, index.main)):
        for method in _HARMING:
            for figure in _JUDGED:
                losses = [_loss(member, method, figure) for member in members]
                harmed = sum(int(np.sum(loss.mean(axis=0) > 2.0 * standard_error(loss))) for loss in losses)
                largest = max(0.0, *(float(loss.mean(axis=0).max()) for loss in losses))
                table.add(name, len(members) * len(ALPHAS), method, figure, harmed, f"{100 * largest:.2f}")
    return table


def protocol(index: Index) -> Table:
    """Return the figures of the paper's protocol. ``ridge`` is CTD of the paper, ``ctd`` has this package's d."""
    table = Table(["setting", "expert", "method", "alpha", "figure", *_MEAN])
    for result in index.main:
        if result.paper is not None:
            methods = [method for method in result.paper.methods if method != "expert"]
            for figure, (method, place, alpha) in product(_RANKED, _budgets(result.paper, methods)):
                summary = _summary(result.paper.get(method, figure)[:, place])
                table.add(result.setting, result.expert, method, alpha, figure, *summary)
    return table


def targets(index: Index) -> Table:
    """Return the paper's continuous target minus its binary target, on equally many delegated rows."""
    table = Table(["setting", "expert", "alpha", "figure", *_MEAN])
    for result in index.main:
        if result.targets is not None:
            for figure, (place, alpha) in product(_JUDGED, enumerate(result.targets.alphas)):
                gain = result.targets.gain("continuous", "binary", figure)[:, place]
                table.add(result.setting, result.expert, alpha, figure, *_summary(gain))
    return table


def splits(index: Index) -> Table:
    """Return in which share of random calibration splits the realised rate exceeded alpha, and the expected share."""
    table = Table(["setting", "expert", "splits", "alpha", "exceeded", "expected"])
    for result in index.main:
        exceeded, expected, _ = result.splits
        for alpha, seen, theory in zip(ALPHAS, exceeded, expected, strict=True):
            row = (result.splits_count, alpha, _points(seen), _points(theory))
            table.add(result.setting, result.expert, *row)
    return table


TABLES: Final[Mapping[str, Callable[[Index], Table]]] = {
    "runs": runs,
    "figures": figures,
    "recipes": recipes,
    "recipes-on-equal-seeds": recipes_on_equal_seeds,
    "margins": margins,
    "delegation-value": delegation_value,
    "harm": harm,
    "protocol": protocol,
    "splits": splits,
}
"""Makers of the tables, by the name of their file."""


def _all_figures(cube: Cube, methods: Iterable[str]) -> Iterator[tuple[Cell, ...]]:
    """Yield method, alpha, and for each figure its mean and standard error."""
    for method, place, alpha in _budgets(cube, methods):
        summaries = [_summary(cube.get(method, figure)[:, place]) for figure in FIGURES]
        yield (method, alpha, *chain.from_iterable(summaries))


def _budgets(cube: Cube, methods: Iterable[str]) -> Iterator[tuple[str, int, float | None]]:
    """Yield methods with place and value of each budget. Probe and expert have no budget: one row each."""
    for method in methods:
        if method in _WITHOUT_BUDGET:
            yield method, 0, None
        else:
            yield from ((method, place, alpha) for place, alpha in enumerate(cube.alphas))


def _summary(values: FloatArray) -> tuple[str, str | None]:
    """Return the mean over seeds and its standard error; one seed has no error."""
    return _points(values.mean()), None if len(values) == 1 else _points(standard_error(values))


def _gain(own: Cube, over: str, figure: str) -> FloatArray:
    """Return the gain of CTD over a method, mean over alpha, shape [seeds]."""
    gain: FloatArray = own.gain("ctd", over, figure).mean(axis=1)
    return gain


def _points(value: float | FloatArray) -> str:
    return f"{100.0 * float(value):.1f}"


def _loss(result: Result, method: str, figure: str) -> FloatArray:
    """Return by how much a method is below the probe, shape [seeds, alphas]."""
    gain = result.own.chosen_gain(figure) if method == "ctd_best" else result.own.gain(method, "probe", figure)
    return -gain
