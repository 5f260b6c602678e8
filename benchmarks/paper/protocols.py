"""Two protocols on the same trained probes: this package's, and that of arXiv 2604.14251.

This package certifies every budget in closed form on all calibration rows. The paper (section 4) halves the rows that
did not train into calibration and evaluation, and splits calibration 30 to 70. It takes a grid of 100 thresholds, the
Pareto front of (rate, 1 - accuracy) on the first part, and an exact binomial fixed-sequence test on the second. Top-k
baselines choose within batches of 32, 64 and 128.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from benchmarks.paper.cube import FIGURES
from benchmarks.paper.methods import BATCHES, PaperMethods, uncertainty_rank
from benchmarks.paper.pareto import pareto
from calibrate.evaluate.figures import measure
from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.methods import uncertainty
from calibrate.evaluate.rows import ScoredRows
from calibrate.risk.rows import Rows
from calibrate.risk.splits import random_split
from ctd_guardrail._typing import BoolArray, FloatArray, IndexArray
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.store import CalibrationScores

__all__ = [
    "OWN_METHODS",
    "PAPER_ALPHAS",
    "PAPER_METHODS",
    "TARGETS",
    "TOP_SIGNALS",
    "compare_targets",
    "own_protocol",
    "paper_protocol",
]


_TAU: Final = 0.5

OWN_METHODS: Final = (
    *("probe", "expert", "random", "uncertainty", "uncertainty_rank", "ridge"),
    *("ctd", "ctd_auroc", "ctd_accuracy", "ctd_brier", "oracle"),
)
"""Names of :class:`benchmarks.paper.methods.PaperMethods`. ``ridge`` is ``ctd`` with the paper's delegation value."""

PAPER_ALPHAS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
TOP_SIGNALS: Final = ("uncertainty", "ridge", "oracle")
_TOP_K: Final = tuple(f"{signal}_top_{size}" for signal in TOP_SIGNALS for size in BATCHES)
_CERTIFIED: Final = ("uncertainty", "uncertainty_rank", "ridge", "ctd")
PAPER_METHODS: Final = ("probe", "expert", "random", *_CERTIFIED, *_TOP_K, "oracle")
"""``ctd`` is this package's delegation value under the paper's calibration."""

TARGETS: Final = ("continuous", "binary")
"""Targets of the paper's delegation value: v, and 1[probe wrong and expert right]."""


def own_protocol(
    calibration: ScoredRows, test: ScoredRows, ridge: tuple[FloatArray, FloatArray], *, delta: float, seed: int
) -> FloatArray:
    """Return the figures of all methods at all budgets, shape [methods, alphas, figures].

    Args:
        calibration: Rows that certify.
        test: Rows of the evaluation.
        ridge: The paper's delegation value of the calibration rows and of the test rows.
        delta: Error probability of each certificate.
        seed: Seed of the random baseline.
    """
    ours = _methods(calibration, test, delta=delta, seed=seed)
    paper = _methods(replace(calibration, d=ridge[0]), replace(test, d=ridge[1]), delta=delta, seed=seed)

    def delegated(method: str, alpha: float) -> BoolArray:
        methods, name = (paper, "ctd") if method == "ridge" else (ours, method)
        return methods.delegate(name, alpha).rows

    return np.array([[_figures(test, delegated(method, alpha)) for alpha in ALPHAS] for method in OWN_METHODS])


def paper_protocol(rows: ScoredRows, ridge: FloatArray, *, delta: float, seed: int) -> FloatArray:
    """Return the figures of all methods at all budgets, shape [methods, alphas, figures].

    Args:
        rows: All rows that did not train. Half of them certify, half are evaluated.
        ridge: The paper's delegation value, shape [n].
        delta: Error probability of each certificate.
        seed: Seed of the splits and of the order of the batches.
    """
    halves = random_split(rows.label.size, share=0.5, seed=seed)
    held, shown = _take(rows, halves.optimisation), _take(rows, halves.testing)
    split = random_split(held.label.size, seed=seed)
    signals = {
        "uncertainty": uncertainty(rows.p),
        "uncertainty_rank": uncertainty_rank(rows.p, held.p),
        "ridge": ridge,
        "ctd": rows.d,
    }
    batches = _methods(
        replace(held, d=ridge[halves.optimisation]), replace(shown, d=ridge[halves.testing]), delta=delta, seed=seed
    )

    def delegated(method: str, alpha: float) -> BoolArray:
        if method not in _CERTIFIED:
            return batches.delegate(method.replace("ridge", "ctd"), alpha).rows
        signal = signals[method]
        outcome = pareto(
            Rows(signal[halves.optimisation], held.p, held.merged, held.label), alpha=alpha, delta=delta, split=split
        )
        if outcome.setting is None:
            return np.zeros(shown.label.size, dtype=np.bool_)
        above: BoolArray = signal[halves.testing] > outcome.setting.threshold
        return above

    return np.array([[_figures(shown, delegated(method, alpha)) for alpha in PAPER_ALPHAS] for method in PAPER_METHODS])


def compare_targets(test: ScoredRows, values: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Return the figures of delegation values on equally many delegated rows, shape [targets, alphas, figures].

    Figure 6 of the paper: each target delegates the top share alpha of its own ranking.

    Args:
        test: Rows of the evaluation.
        values: Delegation values of the targets in :data:`TARGETS`, each of shape [n].
    """
    n = test.label.size
    ranks = [np.argsort(np.argsort(-value, kind="stable"), kind="stable") for value in values]
    return np.array([[_figures(test, rank < largest_count(n, alpha)) for alpha in ALPHAS] for rank in ranks])


def _methods(calibration: ScoredRows, test: ScoredRows, *, delta: float, seed: int) -> PaperMethods:
    scores = CalibrationScores.from_rows(
        d=calibration.d, p=calibration.p, expert=calibration.expert, label=calibration.label
    )
    return PaperMethods(test, scores, delta=delta, tau=_TAU, seed=seed)


def _take(rows: ScoredRows, index: IndexArray) -> ScoredRows:
    return ScoredRows(rows.p[index], rows.d[index], rows.expert[index], rows.label[index], merge=rows.merge)


def _figures(rows: ScoredRows, delegated: BoolArray) -> list[float]:
    figures = measure(rows.label, rows.cascade_score(delegated), rows.clusters, tau=_TAU)
    return [float(delegated.mean()) if name == "rate" else figures[name].value for name in FIGURES]
