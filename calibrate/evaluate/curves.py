"""Figures of the cascade against its budget, the area they win, and whether differences are more than luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibrate.evaluate.influence import FIGURES, Influences, cluster_error, measure_with_influence
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.metrics import Metrics
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table

__all__ = [
    "Point",
    "Points",
    "area_table",
    "cascade_table",
    "columns_with_errors",
    "figures_with_errors",
    "measure_points",
]

FloatArray = NDArray[np.float64]

_AREA_FIGURES: Final = ("auroc", "accuracy", "brier")


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one budget.

    Attributes:
        rate: Share of the rows that went to the expert.
        threshold: The certified threshold, where there is one.
        metrics: Figures of the cascade's score.
        influences: Influence of each row on each figure.
    """

    rate: float
    threshold: float | None
    metrics: Metrics
    influences: Influences


Points = Mapping[tuple[str, float], Point]
"""(method, alpha) -> point."""


def measure_points(rows: ScoredRows, methods: Methods, budgets: Sequence[float], *, tau: float) -> Points:
    """Measure every method at every budget."""
    points: dict[tuple[str, float], Point] = {}
    for name in methods.names:
        for alpha in budgets:
            delegation = methods.delegate(name, alpha)
            metrics, influences = measure_with_influence(rows.label, rows.cascade_score(delegation.rows), tau=tau)
            points[name, alpha] = Point(float(delegation.rows.mean()), delegation.threshold, metrics, influences)
    return points


def cascade_table(rows: ScoredRows, points: Points) -> Table:
    """Return figures 3, 4, 7, 8, 12 and 13 of the paper as one table."""
    clusters = rows.clusters
    records = tuple(
        {
            "method": method,
            "alpha": alpha,
            "rate": point.rate,
            "threshold": point.threshold,
            **_with_errors(point, clusters),
        }
        for (method, alpha), point in points.items()
    )
    return Table(
        "cascade",
        "The cascade's figures against its budget, for every way of spending it",
        {"method": "who chooses the rows that go to the expert", "alpha": "budget"},
        {
            "rate": "share of the rows that went to the expert",
            "threshold": "certified threshold, where the method has one",
            **columns_with_errors(),
        },
        records,
    )


def columns_with_errors() -> dict[str, str]:
    """Return a column for each figure and one for its standard error."""
    columns: dict[str, str] = {}
    for name, meaning in FIGURES.items():
        columns |= {name: meaning, f"{name}_se": f"standard error of {name}, over clusters"}
    return columns


def figures_with_errors(label: FloatArray, score: FloatArray, clusters: NDArray[np.int64], *, tau: float) -> Record:
    """Return each figure of a score and its standard error, as columns of a row."""
    metrics, influences = measure_with_influence(label, score, tau=tau)
    return _with_errors(Point(0.0, None, metrics, influences), clusters)


def _with_errors(point: Point, clusters: NDArray[np.int64]) -> Record:
    record: Record = {}
    for name in FIGURES:
        record[name] = getattr(point.metrics, name)
        record[f"{name}_se"] = cluster_error(point.influences[name], clusters)
    return record


def area_table(rows: ScoredRows, points: Points) -> Table:
    """Return, for each figure, the share of the oracle's area over the probe that a method reaches.

    For CTD this is FAIC = area(CTD - probe) / area(oracle - probe), areas by the trapezoid rule over the budgets from
    0, where every cascade is its probe, to the largest. The error of the ratio is by the delta method.
    """
    budgets = sorted({alpha for _, alpha in points})
    names = [name for name in dict.fromkeys(name for name, _ in points) if name not in {"probe", "expert", "oracle"}]
    records = []
    for figure in _AREA_FIGURES:
        bound, bound_influence = _area(points, "oracle", figure, budgets)
        for method in names:
            area, influence = _area(points, method, figure, budgets)
            ratio = area / bound if bound else float("nan")
            error = (
                cluster_error((influence - ratio * bound_influence) / bound, rows.clusters) if bound else float("nan")
            )
            records.append({"figure": figure, "method": method, "area": area, "share": ratio, "share_se": error})
    return Table(
        "faic",
        f"Area won over the probe alone for budgets up to {budgets[-1]:g}, as a share of the oracle's",
        {"figure": "what the curve shows", "method": "who chooses the rows"},
        {
            "area": "area between the method's curve and the probe's; positive is better, also for Brier",
            "share": "area / the oracle's area; for CTD this is FAIC",
            "share_se": "standard error of share, over clusters",
        },
        tuple(records),
    )


def _area(points: Points, method: str, figure: str, budgets: Sequence[float]) -> tuple[float, FloatArray]:
    """Return the area over the probe and its influences."""
    sign = -1.0 if figure == "brier" else 1.0
    gains, influences = [0.0], [np.zeros_like(points["probe", budgets[0]].influences[figure])]
    for alpha in budgets:
        point, probe = points[method, alpha], points["probe", alpha]
        gains.append(sign * (getattr(point.metrics, figure) - getattr(probe.metrics, figure)))
        influences.append(sign * (point.influences[figure] - probe.influences[figure]))
    grid = [0.0, *budgets]
    return float(np.trapezoid(gains, grid)), np.trapezoid(np.array(influences), grid, axis=0)
