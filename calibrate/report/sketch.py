"""A plot before it is drawn, and the style of each method in every plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from calibrate.evaluate.table import Record, Table
from calibrate.report.canvas import Axes, Style, band

__all__ = ["FIGURES", "STYLES", "Sketch", "bands", "quote"]

STYLES: Final[Mapping[str, Style]] = {
    "ctd": Style("CTD", "#0072B2", "-", "o"),
    "ctd_auroc": Style("CTD, best AUROC", "#56B4E9", "--", "^"),
    "ctd_accuracy": Style("CTD, best accuracy", "#E69F00", "-.", "D"),
    "ctd_brier": Style("CTD, best Brier", "#CC79A7", ":", "x"),
    "uncertainty": Style("uncertainty |p - 1/2|", "#D55E00", "--", "s"),
    "oracle": Style("oracle (true v)", "#009E73", ":", "D"),
    "random": Style("random", "#CC79A7", "--", "x"),
    "probe": Style("probe alone", "#000000", ":"),
    "expert": Style("expert alone", "#000000", "-"),
    "plug_in": Style("quantile, uncertified", "#CC79A7", ":", "x"),
}
FIGURES: Final[Mapping[str, str]] = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "brier": "Brier score",
    "missed_harm": "missed harm",
}


@dataclass(frozen=True, slots=True)
class Sketch:
    """A plot before it is drawn.

    Attributes:
        name: Stem of the file.
        table: Name of the table of the study that it is drawn from.
        title: Title of the plot.
        alt: Alternative text with the main numbers.
        draw: Draws the plot.
    """

    name: str
    table: str
    title: str
    alt: str
    draw: Callable[[Axes], None]


def bands(axes: Axes, table: Table, key: str, names: Iterable[str], *, x: str, y: str) -> None:
    """Draw a line with its error band for each of these values of a key, if the table has rows for it."""
    for name in names:
        rows = table.where(**{key: name})
        if rows:
            band(axes, rows, x, y, STYLES[name])
    axes.set_xlabel(x)


def quote(rows: Sequence[Record], key: str, y: str) -> str:
    """Return some rows as words for an alternative text: ``CTD 0.812, random 0.741``."""
    words = (
        f"{STYLES[row[key]].label if row[key] in STYLES else row[key]} {row[y]:.3f}"
        for row in rows
        if row[y] is not None
    )
    return ", ".join(words)
