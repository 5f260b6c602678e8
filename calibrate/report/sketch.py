"""A plot before it is drawn, and the style that each method has in all of them."""

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
    "uncertainty_rank": Style("uncertainty by rank", "#E69F00", "-.", "^"),
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
    """What a plot will be.

    Attributes:
        name: Stem of its file.
        table: The table of the study that it is drawn from.
        title: What it shows.
        alt: The same in words, with the main numbers.
        draw: Draws it.
    """

    name: str
    table: str
    title: str
    alt: str
    draw: Callable[[Axes], None]


def bands(axes: Axes, table: Table, key: str, names: Iterable[str], *, x: str, y: str) -> None:
    """Draw a line with its error band for each of these values of a key that the table has."""
    for name in names:
        rows = table.where(**{key: name})
        if rows:
            band(axes, rows, x, y, STYLES[name])
    axes.set_xlabel(x)


def quote(rows: Sequence[Record], key: str, y: str) -> str:
    """Return what an alternative text says of some rows: ``CTD .812, random .741``."""
    said = (
        f"{STYLES[row[key]].label if row[key] in STYLES else row[key]} {row[y]:.3f}"
        for row in rows
        if row[y] is not None
    )
    return ", ".join(said)
