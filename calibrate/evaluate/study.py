"""Every figure of an evaluation, as tables of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from scipy.stats import rankdata

from calibrate.evaluate.budget import SPLITS, composition_table, sensitivity_table, splits_table
from calibrate.evaluate.curves import area_table, cascade_table, read_cells
from calibrate.evaluate.delegation import fixes_table, gain_table, groups_table, reliability_table
from calibrate.evaluate.failures import failures_table
from calibrate.evaluate.grid import ALPHAS, Grid
from calibrate.evaluate.merges import merges_table
from calibrate.evaluate.methods import CERTIFIED, uncertainty
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.significance import compare_methods
from calibrate.evaluate.table import Table
from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["BUDGETS", "Study", "measure_study"]

BUDGETS: Final = tuple(i / 20 for i in range(1, 20))
"""Budgets of curves and areas, .05 to .95."""


@dataclass(frozen=True, slots=True)
class Study:
    """One evaluation: a table of numbers for each figure.

    Every figure is one :class:`Table`, which names and explains its columns; ``study.tables[name].rows`` is a tuple of
    dicts. A column ``x_se`` is the standard error of ``x`` over clusters of the test rows. Shares and scores are in
    [0, 1]; there are no percentages.

    Tables, with their keys in brackets (figures of arXiv 2604.14251 in parentheses):

    - ``cascade`` [method, alpha]: rate, threshold, auroc, accuracy, brier and missed_harm against the budget (3, 4, 7,
      8, 12, 13), for every method of :class:`calibrate.evaluate.methods.Methods` at the budgets :data:`BUDGETS`.
    - ``faic`` [figure, method]: area won over the probe as a share of the oracle's. FAIC is the row auroc, ctd.
    - ``tests`` [figure, versus, alpha]: CTD minus another method, p-value, and p-value after Holm's correction.
    - ``gain`` [signal, share]: mean true v of the rows that a signal ranks highest (5).
    - ``groups`` [group]: mean d against mean v (9).
    - ``composition`` [method, alpha, group]: groups of the delegated rows (10).
    - ``splits`` [method, alpha]: realised rates over 500 calibration splits, violations with their interval (11).
    - ``failures`` [case, row]: the worst rows on which delegation went wrong (2). No texts.
    - ``reliability`` [bin]: mean v in bins of d.
    - ``fixes`` [bin]: P(the expert corrects the verdict | d), P(it spoils it | d).
    - ``merges`` [merge, alpha]: figures of CTD when the expert's score replaces the probe's, is averaged or stacked.
    - ``sensitivity`` [share]: figures of the cascade at every threshold.

    Attributes:
        rows: Number of test rows.
        unsafe: Number of unsafe test rows.
        clusters: Number of clusters of rows that depend on each other.
        calibration_rows: Number of rows behind the certificates.
        tau: A score of at least tau blocks.
        delta: Error probability of each certificate.
        alpha: The policy's own budget, at which ``failures`` are counted.
        spearman: Rank correlation of d with the true v; None if one of them is constant.
        tables: The figures.
    """

    rows: int
    unsafe: int
    clusters: int
    calibration_rows: int
    tau: float
    delta: float
    alpha: float
    spearman: float | None
    tables: Mapping[str, Table]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as strict JSON values; a number that could not be measured is None."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tables"}
        return {**numbers, "tables": {name: table.to_dict() for name, table in self.tables.items()}}


def measure_study(
    grid: Grid, *, alpha: float, one_law: bool = True, budgets: Sequence[float] = BUDGETS, splits: int = SPLITS
) -> Study:
    """Measure every figure of a grid.

    Args:
        grid: Test rows, calibration scores and methods.
        alpha: The policy's own budget.
        one_law: Whether test and calibration rows are draws from one law. If so, random splits are made of both
            together; otherwise only the test rows are split, in halves.
        budgets: Budgets of curves and areas; :data:`ALPHAS` are added.
        splits: Number of random calibration splits.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
        DataError: All rows have one label.
    """
    rows, calibration = grid.rows, grid.calibration
    alphas = sorted({*ALPHAS, alpha})
    cells = read_cells(grid, sorted({*budgets, *alphas}))
    # Test rows have expert scores. Calibration rows without one follow another law.
    signals, clusters = _pool(grid, with_calibration=one_law)
    tables = (
        cascade_table(cells),
        area_table(cells),
        compare_methods(cells, alphas),
        gain_table(grid),
        groups_table(rows),
        composition_table(grid, alphas),
        splits_table(
            signals,
            clusters,
            alphas,
            delta=grid.delta,
            calibration_rows=calibration.scored.d.size if one_law else None,
            seed=grid.seed,
            splits=splits,
        ),
        failures_table(grid, alpha),
        reliability_table(rows),
        fixes_table(grid),
        sensitivity_table(grid),
        merges_table(grid, alphas),
    )
    return Study(
        rows=rows.label.size,
        unsafe=int(rows.label.sum()),
        clusters=np.unique(rows.clusters).size,
        calibration_rows=calibration.d.size,
        tau=grid.tau,
        delta=grid.delta,
        alpha=alpha,
        spearman=_rank_correlation(rows),
        tables={table.name: table for table in tables},
    )


def _pool(grid: Grid, *, with_calibration: bool) -> tuple[dict[str, FloatArray], IntArray]:
    """Return the signals that can be split into calibration and counted rows, and the clusters of their rows."""
    signals = {name: grid.methods.signals[name] for name in CERTIFIED}
    clusters = np.unique(grid.rows.clusters, return_inverse=True)[1].astype(np.int64)
    if not with_calibration:
        return signals, clusters
    # Calibration rows are one of each cluster, and no test row belongs to their clusters.
    calibration = grid.calibration.scored
    held = {"uncertainty": uncertainty(calibration.p), "ctd": calibration.d}
    own = clusters.max() + 1 + np.arange(calibration.d.size)
    return {name: np.concatenate([signals[name], held[name]]) for name in signals}, np.concatenate([clusters, own])


def _rank_correlation(rows: ScoredRows) -> float | None:
    """Return Spearman's correlation of d and v; None if one of them is constant."""
    ranks = rankdata(rows.d), rankdata(rows.value)
    if min(np.ptp(rank) for rank in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])
