"""Plots of the cascade against its budget, and of the area that it wins over the probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from calibrate.evaluate.methods import CHOSEN
from calibrate.evaluate.significance import RIVALS
from calibrate.evaluate.study import Study
from calibrate.evaluate.table import Table
from calibrate.report.canvas import Axes, Style, band, intervals, palette
from calibrate.report.sketch import FIGURES, STYLES, Sketch, bands, quote

__all__ = ["cascade_sketches"]

_CURVES: Final = ("ctd", "uncertainty", "oracle", "random", "probe", "expert")
_QUOTED_BUDGET: Final = 0.2


def cascade_sketches(study: Study) -> Iterator[Sketch]:
    """Yield the plots in the order of a report."""
    cascade = study.tables["cascade"]
    quoted = [row for row in cascade.where(alpha=_QUOTED_BUDGET) if row["method"] in _CURVES]
    for figure, name in FIGURES.items():
        yield Sketch(
            f"cascade_{figure}",
            "cascade",
            f"{name[0].upper()}{name[1:]} of the cascade against its budget",
            f"Lines of {name} against the budget. At alpha = {_QUOTED_BUDGET:g}: {quote(quoted, 'method', figure)}.",
            partial(_against_budget, cascade, figure),
        )
    yield _margin_sketch(study.tables["tests"])
    yield _area_sketch(study.tables["faic"])
    chosen = [row for row in cascade.where(alpha=_QUOTED_BUDGET) if row["method"] in {"ctd", *CHOSEN}]
    if len(chosen) > 1:
        yield Sketch(
            "choices",
            "cascade",
            "Accuracy of CTD at the budget's threshold and at the best certified one by each criterion",
            f"Lines of accuracy against alpha. At alpha = {_QUOTED_BUDGET:g}: {quote(chosen, 'method', 'accuracy')}.",
            partial(_choices, cascade),
        )
    yield _merge_sketch(study.tables["merges"])


def _against_budget(table: Table, figure: str, axes: Axes) -> None:
    bands(axes, table, "method", _CURVES, x="alpha", y=figure)
    axes.set(xlabel="budget alpha", ylabel=FIGURES[figure])


def _margin_sketch(table: Table) -> Sketch:
    rows = table.where(figure="auroc", versus="uncertainty")
    words = ", ".join(f"{row['difference']:+.3f} at {row['alpha']:g}" for row in rows)
    return Sketch(
        "tests",
        "tests",
        "AUROC of CTD minus its rivals, with 95% intervals",
        f"Points with intervals for each budget. Against uncertainty: {words}.",
        partial(_margins, table),
    )


def _margins(table: Table, axes: Axes) -> None:
    for offset, name in enumerate(RIVALS):
        rows = [row | {"x": row["alpha"] + 0.008 * (offset - 1)} for row in table.where(figure="auroc", versus=name)]
        intervals(axes, rows, "x", "difference", _dots(STYLES[name]))
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="budget alpha", ylabel="AUROC: CTD - the other")


def _dots(style: Style) -> Style:
    return Style(style.label, style.color, "none", style.marker or ".")


def _area_sketch(table: Table) -> Sketch:
    rows = [row for row in table.where(figure="auroc") if row["method"] in {"ctd", *CHOSEN, *_CURVES}]
    return Sketch(
        "faic",
        "faic",
        "Area won over the probe in AUROC, as a share of the oracle's (FAIC)",
        f"Points with 95% intervals: {quote(rows, 'method', 'share')}.",
        partial(_areas, Table("faic", "", table.keys, table.values, tuple(rows))),
    )


def _areas(table: Table, axes: Axes) -> None:
    known = [row for row in table.rows if row["share"] is not None]
    for height, row in enumerate(reversed(known)):
        error = 1.96 * (row["share_se"] or 0.0)
        axes.errorbar(row["share"], height, xerr=error, fmt="o", color="#0072B2", capsize=2)
    names = [row["method"] for row in reversed(known)]
    axes.set_yticks(range(len(names)), [STYLES[name].label if name in STYLES else name for name in names])
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("share of the oracle's area")


def _choices(table: Table, axes: Axes) -> None:
    bands(axes, table, "method", ("ctd", *CHOSEN, "probe"), x="alpha", y="accuracy")
    axes.set(xlabel="budget alpha", ylabel="accuracy")


def _merge_sketch(table: Table) -> Sketch:
    rows = table.where(alpha=_QUOTED_BUDGET)
    return Sketch(
        "merges",
        "merges",
        "AUROC of CTD with the expert's score in place of the probe's, averaged with it, or stacked",
        f"Lines of AUROC against alpha. At alpha = {_QUOTED_BUDGET:g}: {quote(rows, 'merge', 'auroc')}.",
        partial(_merges, table),
    )


def _merges(table: Table, axes: Axes) -> None:
    for style in palette(dict.fromkeys(row["merge"] for row in table.rows)):
        band(axes, table.where(merge=style.label), "alpha", "auroc", style)
    axes.set(xlabel="budget alpha", ylabel="AUROC")
