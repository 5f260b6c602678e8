"""Whether CTD differs from another method by more than luck: paired tests, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import ttest_1samp

from calibrate.evaluate.curves import Points
from calibrate.evaluate.influence import cluster_error
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table

__all__ = ["combine_tests", "compare_methods", "holm"]

FloatArray = NDArray[np.float64]

_FIGURES: Final = ("auroc", "accuracy", "brier", "missed_harm")
_VERSUS: Final = ("uncertainty", "uncertainty_rank", "random", "probe")


def compare_methods(rows: ScoredRows, points: Points, alphas: Sequence[float]) -> Table:
    """Test CTD against its rivals on the same rows: z-tests of the differences, errors over clusters."""
    records: list[Record] = []
    for figure in _FIGURES:
        for versus in _VERSUS:
            for alpha in alphas:
                one, other = points["ctd", alpha], points[versus, alpha]
                difference = getattr(one.metrics, figure) - getattr(other.metrics, figure)
                error = cluster_error(one.influences[figure] - other.influences[figure], rows.clusters)
                keys = {"figure": figure, "versus": versus, "alpha": alpha}
                records.append(keys | _result(difference, error, _two_sided(difference, error)))
    return _table(records, "z-test")


def combine_tests(tables: Sequence[Table]) -> Table:
    """Test the mean difference over several evaluations, such as seeds: t-tests of the paired differences.

    Evaluations that share rows are not independent: over re-drawn splits of one data set this test says whether the
    difference depends on the split, and its p-value is too small for data yet to come.
    """
    records: list[Record] = []
    for row in tables[0].rows:
        keys = {name: row[name] for name in tables[0].keys}
        found = [table.where(**keys) for table in tables]
        differences = np.array([match[0]["difference"] for match in found if match], dtype=np.float64)
        error = float(differences.std(ddof=1) / math.sqrt(differences.size))
        mean = float(differences.mean())
        # Equal differences have no spread to test against.
        p = float(ttest_1samp(differences, 0.0).pvalue) if error > 0 else _two_sided(mean, error)
        records.append(keys | _result(mean, error, p))
    return _table(records, "t-test over evaluations")


def holm(p: FloatArray) -> FloatArray:
    """Return p-values for which the chance of any false rejection is kept (Holm 1979), shape [m]."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _two_sided(difference: float, error: float) -> float:
    if not error > 0:
        return 1.0 if difference == 0 else float("nan")
    return float(2.0 * ndtr(-abs(difference) / error))


def _result(difference: float, error: float, p: float) -> Record:
    return {"difference": difference, "difference_se": error, "p": p}


def _table(records: Sequence[Record], test: str) -> Table:
    p = np.array([record["p"] for record in records])
    adjusted: list[Any] = holm(np.where(np.isfinite(p), p, 1.0)).tolist()
    return Table(
        "tests",
        f"CTD minus each rival at the same budget; paired {test}, Holm's correction over all rows of this table",
        {"figure": "what is compared", "versus": "the other method", "alpha": "budget"},
        {
            "difference": "CTD - the other method; for Brier and missed harm, negative is better",
            "difference_se": "its standard error",
            "p": "two-sided p-value of no difference",
            "p_holm": "p after Holm's correction",
        },
        tuple({**record, "p_holm": value} for record, value in zip(records, adjusted, strict=True)),
    )
