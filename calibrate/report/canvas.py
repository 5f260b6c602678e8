"""Style and SVG output of every plot: sized for a phone, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.evaluate.table import Record

__all__ = ["Axes", "Style", "band", "draw_svg", "intervals", "palette"]

# In inches. At the 360 px of a phone the letters are as large as those of the page.
_SIZE: Final = (4.4, 3.6)
# Any, because matplotlib types its settings as one literal of all their names.
_RC: Final[Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and scaled
    "text.parse_math": False,  # names of groups come from data, and may hold dollars
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True, slots=True)
class Style:
    """Style of a line, distinct from the others without its colour as well.

    Attributes:
        label: Name in the legend.
        color: A colour of the palette of Okabe and Ito, which is safe for colour-blind readers.
        dash: Matplotlib's line style.
        marker: Matplotlib's marker, empty for none.
    """

    label: str
    color: str
    dash: str = "-"
    marker: str = ""

    @property
    def line(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``."""
        return {"label": self.label, "color": self.color, "linestyle": self.dash, "marker": self.marker}


_COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_DASHES: Final = ("-", "--", "-.", ":")
_MARKERS: Final = ("o", "s", "^", "D", "v", "x", "+")


def palette(labels: Iterable[str]) -> list[Style]:
    """Return a style for each label; no two of the first 28 are alike."""
    return [Style(label, _COLORS[i % 7], _DASHES[(i // 7 + i) % 4], _MARKERS[i % 7]) for i, label in enumerate(labels)]


def band(axes: Axes, rows: Sequence[Record], x: str, y: str, style: Style) -> None:
    """Draw a line and, if it has standard errors, a band of one on either side."""
    known = [row for row in rows if row[y] is not None]
    xs, ys = [row[x] for row in known], [row[y] for row in known]
    axes.plot(xs, ys, **style.line)
    if known and all(row.get(f"{y}_se") is not None for row in known):
        low, high = ([row[y] + sign * row[f"{y}_se"] for row in known] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=style.color, alpha=0.15, linewidth=0)


def intervals(axes: Axes, rows: Sequence[Record], x: str, y: str, style: Style) -> None:
    """Draw points with 95% intervals: from ``y_low`` to ``y_high`` if there are such columns, else from ``y_se``."""
    known = [row for row in rows if row[y] is not None]
    ends = [_ends(row, y) for row in known]
    ys = [row[y] for row in known]
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(ys, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(ys, ends, strict=True)],
    ]
    axes.errorbar([row[x] for row in known], ys, yerr=errors, capsize=2, elinewidth=1, **style.line)


def _ends(row: Record, y: str) -> tuple[float, float]:
    if f"{y}_low" in row:
        return row[f"{y}_low"], row[f"{y}_high"]
    reach = 1.96 * (row[f"{y}_se"] or 0.0)
    return row[y] - reach, row[y] + reach


def draw_svg(name: str, title: str, alt: str, draw: Callable[[Axes], None]) -> str:
    """Draw one plot.

    Args:
        name: Makes the identifiers in the file unique, so that one page can hold several plots.
        title: Title of the plot.
        alt: Alternative text with the main numbers.
        draw: Draws on the axes. Labelled lines appear in the legend below the plot.

    Returns:
        SVG with ``title`` and ``desc``, without a date or a version.
    """
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    start = svg.index("<svg ")
    end = svg.index(">", start)
    described = f'<title id="{name}-title">{escape(title)}</title>\n <desc id="{name}-desc">{escape(alt)}</desc>'
    role = f' role="img" aria-labelledby="{name}-title {name}-desc"'
    return f"{svg[:end]}{role}>\n {described}{svg[end + 1 :]}"
