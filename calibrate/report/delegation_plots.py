"""Plots of the delegation value and of the way that the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from calibrate.evaluate.study import Study
from calibrate.evaluate.table import Record, Table
from calibrate.report.canvas import Axes, Style, band, intervals, palette
from calibrate.report.sketch import STYLES, Sketch, bands, quote

__all__ = ["delegation_sketches"]

_MOST_GROUPS: Final = 8
_LINE: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.8}


def delegation_sketches(study: Study) -> Iterator[Sketch]:
    """Yield the plots in the order of the report, without those that have no numbers."""
    drawn: dict[str, tuple[str, Callable[[Table, Axes], None]]] = {
        "gain": (_describe_gain(study.tables["gain"]), _gain),
        "groups": (_describe_groups(study.tables["groups"]), _groups),
        "composition": (_describe_composition(study.tables["composition"]), _composition),
        "splits": (_describe_splits(study.tables["splits"]), _splits),
        "violations": (_describe_violations(study.tables["splits"]), partial(_violations, study.delta)),
        "reliability": (_describe_bins(study.tables["reliability"], "value", "the mean true v"), _reliability),
        "fixes": (_describe_bins(study.tables["fixes"], "fixes", "the share that the expert corrects"), _fixes),
        "sensitivity": (_describe_sensitivity(study.tables["sensitivity"]), _sensitivity),
    }
    titles = {"violations": "Share of calibration splits whose realised rate exceeds the budget"}
    for name, (alt, draw) in drawn.items():
        table = study.tables["splits" if name == "violations" else name]
        if table.rows:
            yield Sketch(name, table.name, titles.get(name, table.title), alt, partial(draw, table))
    failures = study.tables["failures"]
    if failures.rows:
        yield Sketch("failures", "failures", failures.title, _describe_failures(failures), partial(_failures, failures))


def _gain(table: Table, axes: Axes) -> None:
    bands(axes, table, "signal", ("ctd", "uncertainty", "oracle"), x="share", y="value")
    axes.axhline(0.0, **_LINE)
    axes.set(xlabel="share k/N of the rows, from the top", ylabel="mean true v of them")


def _describe_gain(table: Table) -> str:
    return f"Lines of the mean true v. In the top 20%: {quote(table.where(share=0.2), 'signal', 'value')}."


def _groups(table: Table, axes: Axes) -> None:
    styles = palette(row["group"] for row in table.rows)
    for row, style in zip(table.rows, styles, strict=True):
        across, along = (1.96 * (row[error] or 0.0) for error in ("value_se", "d_se"))
        line = style.line | {"linestyle": "none"}
        axes.errorbar(row["d"], row["value"], yerr=across, xerr=along, capsize=2, **line)
    _diagonal(axes, [value for row in table.rows for value in (row["d"], row["value"])])
    axes.set(xlabel="mean d of the group", ylabel="mean true v")


def _describe_groups(table: Table) -> str:
    words = ", ".join(f"{row['group']}: d {row['d']:.3f}, v {row['value']:.3f}" for row in table.rows)
    return f"A point for each group. {words}."


def _composition(table: Table, axes: Axes) -> None:
    groups = list(dict.fromkeys(row["group"] for row in table.rows))
    size = {row["group"]: row["share_of_rows"] for row in table.rows}
    largest = sorted(groups, key=lambda group: -size[group])[:_MOST_GROUPS]
    for style in palette(largest):
        band(axes, table.where(method="ctd", group=style.label), "alpha", "rate", style)
    alphas = sorted({row["alpha"] for row in table.rows})
    axes.plot(alphas, alphas, **_LINE)
    axes.set(xlabel="budget alpha", ylabel="share of the group delegated")


def _describe_composition(table: Table) -> str:
    rows = table.where(method="ctd", alpha=0.2)
    return f"Share of each group that CTD delegates. At alpha = 0.2: {quote(rows, 'group', 'rate')}."


def _splits(table: Table, axes: Axes) -> None:
    for offset, name in enumerate(("ctd", "uncertainty", "plug_in")):
        rows: list[Record] = [
            {
                "alpha": row["alpha"] + 0.006 * (offset - 1),
                "rate": row["rate"] - row["alpha"],
                "rate_low": row["rate_p05"] - row["alpha"],
                "rate_high": row["rate_p95"] - row["alpha"],
            }
            for row in table.where(method=name)
        ]
        style = STYLES[name]
        intervals(axes, rows, "alpha", "rate", Style(style.label, style.color, "none", style.marker))
    axes.axhline(0.0, **_LINE)
    axes.set(xlabel="budget alpha", ylabel="realised rate - alpha")


def _describe_splits(table: Table) -> str:
    words = ", ".join(f"{row['rate']:.3f} at {row['alpha']:g}" for row in table.where(method="ctd"))
    return f"Realised rate minus alpha with its 5% to 95% range over splits. Mean rate of CTD: {words}."


def _violations(delta: float, table: Table, axes: Axes) -> None:
    for name in ("ctd", "uncertainty", "plug_in"):
        style = STYLES[name]
        intervals(axes, table.where(method=name), "alpha", "violations", style)
    expected = table.where(method="ctd")
    axes.plot(
        [row["alpha"] for row in expected],
        [row["expected"] for row in expected],
        color="black",
        linestyle=":",
        label="expected of CTD here",
    )
    axes.axhline(delta, label=f"delta = {delta:g}", **_LINE)
    axes.set(xlabel="budget alpha", ylabel="splits over budget", ylim=(0, None))


def _describe_violations(table: Table) -> str:
    words = ", ".join(
        f"{row['violations']:.3f} (expected {row['expected']:.3f}) at {row['alpha']:g}"
        for row in table.where(method="ctd")
    )
    return f"Share of splits over budget, with 95% intervals. CTD: {words}."


def _reliability(table: Table, axes: Axes) -> None:
    intervals(axes, table.rows, "d", "value", STYLES["ctd"])
    _diagonal(axes, [value for row in table.rows for value in (row["d"], row["value"])])
    axes.set(xlabel="d", ylabel="mean true v")


def _fixes(table: Table, axes: Axes) -> None:
    intervals(axes, table.rows, "d", "fixes", Style("the expert corrects the verdict", "#0072B2", "-", "o"))
    intervals(axes, table.rows, "d", "spoils", Style("the expert spoils it", "#D55E00", "--", "s"))
    axes.set(xlabel="d", ylabel="share of the rows", ylim=(0, None))


def _describe_bins(table: Table, column: str, noun: str) -> str:
    first, last = table.rows[0], table.rows[-1]
    return (
        f"Points with 95% intervals for bins of d. Where d is {first['d']:.3f}, {noun} is {first[column]:.3f}; "
        f"where d is {last['d']:.3f}, it is {last[column]:.3f}."
    )


def _sensitivity(table: Table, axes: Axes) -> None:
    for figure, name, style in (
        ("auroc", "AUROC", STYLES["ctd"]),
        ("accuracy", "accuracy", STYLES["uncertainty"]),
    ):
        band(axes, table.rows, "threshold", figure, Style(name, style.color, style.dash))
    band(axes, table.rows, "threshold", "rate", Style("share delegated", "#000000", ":"))
    axes.set(xlabel="threshold lambda on d", ylabel="figure of the cascade", ylim=(0, 1))


def _describe_sensitivity(table: Table) -> str:
    best = max(table.rows, key=lambda row: row["auroc"])
    return (
        "Lines of AUROC, accuracy and the share delegated against the threshold. AUROC is largest, "
        f"{best['auroc']:.3f}, at a threshold of {best['threshold']:.3f}, where {best['rate']:.3f} are delegated."
    )


def _failures(table: Table, axes: Axes) -> None:
    for style in palette(dict.fromkeys(row["case"] for row in table.rows)):
        rows = table.where(case=style.label)
        line = style.line | {"linestyle": "none", "label": style.label.replace("_", ", ")}
        axes.plot([row["p"] for row in rows], [row["expert"] for row in rows], **line)
    axes.set(xlabel="safety probe p", ylabel="expert e", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _describe_failures(table: Table) -> str:
    cases = {row["case"]: row["cases"] for row in table.rows}
    words = ", ".join(f"{case.replace('_', ', ')}: {count}" for case, count in cases.items())
    return f"The worst rows of each case by the probe's and the expert's score. Rows in all: {words}."


def _diagonal(axes: Axes, values: list[float]) -> None:
    low, high = min(values), max(values)
    axes.plot([low, high], [low, high], linestyle=":", **_LINE)
