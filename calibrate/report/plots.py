"""One plot for each figure of a study, drawn from its tables and from nothing else."""

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
        name: Stem of its file.
        title: What it shows.
        alt: The same in words with the main numbers, for whoever cannot see it.
        table: The table of the study that it was drawn from.
        svg: The drawing, a whole SVG file. What it refers to inside itself is named differently in every plot.
    """

    name: str
    title: str
    alt: str
    table: str
    svg: str


def draw_plots(study: Study) -> Iterator[Plot]:
    """Draw every figure that the study has numbers for, in the order of a report.

    Importing this module raises :class:`ctd_guardrail.errors.DependencyError` where matplotlib is not installed.
    """
    for sketch in (*cascade_sketches(study), *delegation_sketches(study)):
        svg = draw_svg(sketch.name, sketch.title, sketch.alt, sketch.draw)
        yield Plot(sketch.name, sketch.title, sketch.alt, sketch.table, svg)
