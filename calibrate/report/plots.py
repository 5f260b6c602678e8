"""Plots of a study, each drawn from one of its tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from calibrate.evaluate.study import Study
from calibrate.report.canvas import draw_svg
from calibrate.report.cascade_plots import cascade_sketches
from calibrate.report.delegation_plots import delegation_sketches

__all__ = ["Plot", "draw_plots"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn figure.

    Attributes:
        name: Stem of the file.
        title: Title of the plot.
        alt: Alternative text with the main numbers.
        table: Name of the table that it was drawn from.
        svg: The drawing, a whole SVG file. Its internal identifiers are unique among the plots.
    """

    name: str
    title: str
    alt: str
    table: str
    svg: str


def draw_plots(study: Study) -> Iterator[Plot]:
    """Draw every figure that the study has numbers for, in the order of the report."""
    for sketch in (*cascade_sketches(study), *delegation_sketches(study)):
        svg = draw_svg(sketch.name, sketch.title, sketch.alt, sketch.draw)
        yield Plot(sketch.name, sketch.title, sketch.alt, sketch.table, svg)
