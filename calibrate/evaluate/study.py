"""Every figure of an evaluation, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from calibrate.evaluate.budget import SPLITS, composition_table, sensitivity_table, splits_table
from calibrate.evaluate.cascade import ALPHAS
from calibrate.evaluate.curves import area_table, cascade_table, measure_points
from calibrate.evaluate.delegation import fixes_table, gain_table, groups_table, reliability_table, targets_table
from calibrate.evaluate.failures import failures_table
from calibrate.evaluate.merges import merges_table
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.signals import uncertainty
from calibrate.evaluate.significance import compare_methods
from calibrate.evaluate.table import Table
from ctd_guardrail.policy.store import CalibrationScores

__all__ = ["BUDGETS", "Study", "study"]

BUDGETS: Final = tuple(i / 20 for i in range(1, 20))
"""Budgets of curves and areas, .05 to .95."""


@dataclass(frozen=True, slots=True)
class Study:
    """One evaluation, or the mean of several: a table of numbers for each figure.

    Every figure is one :class:`Table`, which names and explains its columns; ``study.tables[name].rows`` is a tuple of
    dicts. A column ``x_se`` is the standard error of ``x``: over clusters of the test rows for one evaluation, over
    evaluations where several are combined. Shares and scores are in [0, 1]; nothing is in per cent.

    Tables, with their keys in brackets (figures of arXiv 2604.14251 in parentheses):

    - ``cascade`` [method, alpha]: rate, threshold, auroc, accuracy, brier, missed_harm against the budget (3, 4, 7, 8,
      12, 13); :class:`calibrate.evaluate.methods.Methods` says what each method is. Budgets are :data:`BUDGETS`.
    - ``faic`` [figure, method]: area won over the probe as a share of the oracle's. FAIC is the row auroc, ctd.
    - ``tests`` [figure, versus, alpha]: CTD minus another method, p-value, and p-value after Holm's correction.
    - ``gain`` [signal, share]: mean true v of the top share by each signal (5).
    - ``targets`` [figure, alpha]: continuous minus binary target (6); no rows without a binary probe.
    - ``groups`` [group]: mean d against mean v (9).
    - ``composition`` [method, alpha, group]: groups of the delegated rows (10).
    - ``splits`` [method, alpha]: realised rates over 500 calibration splits, violations with their interval (11).
    - ``failures`` [case, row]: rows on which delegation went wrong, worst first (2). No texts.
    - ``reliability`` [bin]: mean v in bins of d.
    - ``fixes`` [bin]: P(the expert fixes the verdict | d), P(it spoils it | d).
    - ``merges`` [merge, alpha]: figures of CTD when the expert's score replaces the probe's, is averaged or stacked.
    - ``sensitivity`` [share]: figures of the cascade at every threshold.

    Attributes:
        rows: Number of test rows.
        unsafe: How many of them are unsafe.
        clusters: Number of clusters of rows that depend on each other.
        calibration_rows: Rows behind the certificates.
        tau: Scores of at least tau block.
        delta: Error probability of each certificate.
        alpha: The policy's own budget, which ``failures`` speaks of.
        spearman: Rank correlation of d with the true v; None where one of them is constant.
        tables: The figures.
        studies: Number of evaluations that were combined; the numbers above are then means over them.
    """

    rows: float
    unsafe: float
    clusters: float
    calibration_rows: float
    tau: float
    delta: float
    alpha: float
    spearman: float | None
    tables: Mapping[str, Table]
    studies: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values of strict JSON; what could not be measured is None."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tables"}
        return {**numbers, "tables": {name: table.to_dict() for name, table in self.tables.items()}}


def study(
    rows: ScoredRows,
    calibration: CalibrationScores,
    *,
    alpha: float,
    delta: float,
    tau: float = 0.5,
    seed: int = 0,
    one_law: bool = True,
    traffic: NDArray[np.float64] | None = None,
    budgets: Sequence[float] = BUDGETS,
    splits: int = SPLITS,
) -> Study:
    """Measure every figure on rows that neither training nor calibration has seen.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows, which certify thresholds; of the labelled ones, where there are
            any, the best certified threshold is chosen.
        alpha: The policy's own budget.
        delta: Error probability of each certificate.
        tau: Scores of at least tau block.
        seed: Of random orders and splits.
        one_law: Whether test and calibration rows are draws from one law. Then both are split again for ``splits``;
            otherwise the test rows alone are, in halves.
        traffic: Delegation values that certify d in place of the calibration rows', after a recalibration.
        budgets: Budgets of curves and areas; :data:`ALPHAS` are added.
        splits: Number of random calibration splits.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
        DataError: The columns differ in length, hold values that are not finite, or hold rows of one label only.
    """
    rows.check()
    alphas = sorted({*ALPHAS, alpha})
    methods = Methods(rows, calibration, delta=delta, tau=tau, seed=seed, traffic=traffic)
    points = measure_points(rows, methods, sorted({*budgets, *alphas}), tau=tau)
    # Test rows have scores of the expert: with calibration rows that have none, they are not of one law.
    pooled, clusters = _pool(rows, methods, calibration.scored if one_law else None)
    tables = (
        cascade_table(rows, points),
        area_table(rows, points),
        compare_methods(rows, points, alphas),
        gain_table(rows, methods),
        targets_table(rows, alphas, tau=tau),
        groups_table(rows),
        composition_table(rows, methods, alphas),
        splits_table(
            pooled,
            clusters,
            alphas,
            delta=delta,
            calibration_rows=calibration.scored.d.size if one_law else None,
            seed=seed,
            splits=splits,
        ),
        failures_table(rows, methods, alpha, tau=tau),
        reliability_table(rows),
        fixes_table(rows, tau=tau),
        sensitivity_table(rows, tau=tau),
        merges_table(rows, calibration, methods, alphas, tau=tau),
    )
    return Study(
        rows=rows.label.size,
        unsafe=int(rows.label.sum()),
        clusters=np.unique(rows.clusters).size,
        calibration_rows=calibration.d.size,
        tau=tau,
        delta=delta,
        alpha=alpha,
        spearman=_rank_correlation(rows),
        tables={table.name: table for table in tables},
    )


def _pool(
    rows: ScoredRows, methods: Methods, calibration: CalibrationScores | None
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """Return the signals that can be split into calibration and counted rows, and the clusters of their rows."""
    signals = {name: methods.signals[name] for name in ("uncertainty", "ctd")}
    clusters = np.unique(rows.clusters, return_inverse=True)[1].astype(np.int64)
    if calibration is None:
        return signals, clusters
    # Calibration rows are one of each cluster, and no test row shares theirs.
    held = {"uncertainty": uncertainty(calibration.p), "ctd": calibration.d}
    own = clusters.max() + 1 + np.arange(calibration.d.size)
    return {name: np.concatenate([signals[name], held[name]]) for name in signals}, np.concatenate([clusters, own])


def _rank_correlation(rows: ScoredRows) -> float | None:
    """Return Spearman's correlation of d and v, None where one of them is constant."""
    ranks = rankdata(rows.d), rankdata(rows.value)
    if min(np.ptp(rank) for rank in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])
