"""Pictures of the benchmark, as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.cube import Cube
from benchmarks.paper.results import Index, Result
from calibrate.report.canvas import Style

__all__ = ["draw_curves", "draw_paper", "draw_values"]

_STYLES: Final = {
    "oracle": Style("oracle", "#009E73", ":"),
    "random": Style("random", "#CC79A7", "--"),
    "uncertainty": Style("uncertainty", "#D55E00", "--"),
    "uncertainty_rank": Style("uncertainty, median rank", "#E69F00", "-."),
    "ridge": Style("CTD with the paper's ridge", "#56B4E9"),
    "ctd": Style("CTD", "#0072B2"),
}
_BATCHED: Final = {
    "uncertainty_top_64": Style("uncertainty, top of 64", "#D55E00", ":"),
    "ridge_top_64": Style("ridge, top of 64", "#56B4E9", ":"),
}
_REFITTED: Final = Style("refitted probe alone", "#000000", ":")
_FIGURES: Final = {"auroc": "AUROC", "accuracy": "accuracy"}
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ctd",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PANELS: Final = 6


def draw_curves(index: Index) -> str:
    """Draw the cascade against its budget in one setting of each family, with the refitted probe as a level."""
    shown = _one_of_each_family(index.main)[:_PANELS]
    with mpl.rc_context(_SETTINGS):
        figure, grid = _grid(shown)
        for column, result in zip(grid.T, shown, strict=True):
            for axes, name in zip(column, _FIGURES, strict=True):
                _lines(axes, result.own, _STYLES, name)
                level = 100 * index.refitted(result).own.get("probe", name).mean()
                axes.axhline(level, linewidth=1.2, **_REFITTED.line)
        return _finish(figure, grid)


def draw_paper(results: Sequence[Result]) -> str:
    """Draw the paper's protocol in the same settings."""
    shown = [result for result in _one_of_each_family(results) if result.paper is not None][:_PANELS]
    with mpl.rc_context(_SETTINGS):
        figure, grid = _grid(shown)
        for column, result in zip(grid.T, shown, strict=True):
            for axes, name in zip(column, _FIGURES, strict=True):
                if result.paper is not None:
                    _lines(axes, result.paper, _STYLES | _BATCHED, name)
        return _finish(figure, grid)


def draw_values(results: Sequence[Result]) -> str:
    """Draw how well the paper's ridge and this package's delegation value predict v, for every setting."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(8.0, 0.8 + 0.22 * len(results)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(results))[::-1]
        for axes, pairs, title in (
            (left, [result.spearman.mean(axis=0)[::-1] for result in results], "Spearman of d with v"),
            (right, [[result.own.faic(name).mean() for name in ("ridge", "ctd")] for result in results], "FAIC"),
        ):
            ridge, ours = 100 * np.array(pairs).T
            axes.hlines(places, ridge, ours, color="#999999", linewidth=1)
            axes.plot(ridge, places, "o", color=_STYLES["ridge"].color, label="the paper's ridge")
            axes.plot(ours, places, "o", color=_STYLES["ctd"].color, label="CTD")
            axes.set_title(f"{title}, points of 100", fontsize=9)
            axes.grid(axis="x", alpha=0.3)
        left.set_yticks(places, [result.name for result in results])
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure)


def _one_of_each_family(results: Iterable[Result]) -> list[Result]:
    first: dict[str, str] = {}
    sources = [result for result in results if result.refit_of is None]
    for result in sources:
        first.setdefault(result.family, result.setting)
    return [result for result in sources if first[result.family] == result.setting]


def _grid(shown: Sequence[Result]) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.1 * len(shown), 4.6), layout="constrained")
    grid = figure.subplots(len(_FIGURES), len(shown), sharex=True, squeeze=False)
    for column, result in zip(grid.T, shown, strict=True):
        column[0].set_title(result.name, fontsize=9)
        column[-1].set_xlabel("budget alpha")
    for row, label in zip(grid, _FIGURES.values(), strict=True):
        row[0].set_ylabel(f"{label}, points of 100")
    return figure, grid


def _lines(axes: Axes, cube: Cube, styles: Mapping[str, Style], name: str) -> None:
    start = 100 * cube.get("probe", name).mean()
    for method, style in styles.items():
        middle = 100 * cube.get(method, name).mean(axis=0)
        axes.plot([0.0, *cube.alphas], [start, *middle], linewidth=1.4, **style.line)
    axes.grid(alpha=0.3)


def _finish(figure: Figure, grid: np.ndarray) -> str:
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
