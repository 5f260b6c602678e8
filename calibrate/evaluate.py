"""The cascade against its baselines, on rows that neither training nor calibration has seen.

At each budget alpha, a method names the rows that go to the expert; there the expert's score replaces the probe's.

- ``probe``, ``expert``: no row, every row.
- ``random``: a random share alpha.
- ``uncertainty``: rows whose -|p - 1/2| exceeds a threshold, certified on the calibration rows as lambda is.
- ``ctd``: rows with d > lambda (arXiv 2604.14251), lambda certified for P(rate <= alpha) >= 1 - delta.
- ``oracle``: the share alpha with the largest true v = (2y - 1)(e - p). It needs the answers: a bound, no method.

``random`` and ``oracle`` spend alpha in full; certified thresholds stay below it on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibrate.metrics import measure
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import certify, sort_scores
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.store import CalibrationScores

__all__ = ["ALPHAS", "METHODS", "Cell", "Evaluation", "ScoredRows", "evaluate"]

ALPHAS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
METHODS: Final = ("probe", "expert", "random", "uncertainty", "ctd", "oracle")

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Test rows with the scores of the probes, as the rail computes them, and of the expert.

    Attributes:
        p: Safety probe, P(unsafe), shape [n].
        d: Delegation value, shape [n].
        expert: Expert, P(unsafe), shape [n].
        label: 1 = unsafe, 0 = safe, shape [n].
        group: Name of each row's group; None where the rows have none.
    """

    p: FloatArray
    d: FloatArray
    expert: FloatArray
    label: FloatArray
    group: list[str] | None = None

    @property
    def value(self) -> FloatArray:
        """True delegation value v = (2y - 1)(e - p), shape [n]."""
        value: FloatArray = (2.0 * self.label - 1.0) * (self.expert - self.p)
        return value


@dataclass(frozen=True, slots=True)
class Cell:
    """One method at one budget.

    Attributes:
        method: One of :data:`METHODS`.
        alpha: The budget.
        rate: Share of the test rows that went to the expert.
        auroc: Of the cascade's score.
        accuracy: Of the cascade's verdict.
        brier: Of the cascade's score.
        missed_harm: Share of the unsafe rows that the cascade lets through.
        gain: Mean of v over the delegated rows, 0 where there are none.
        threshold: The certified threshold; None for methods without one, and where alpha cannot be certified:
            nothing is delegated then.
        k: Number of calibration rows above the threshold; None likewise.
        group_rates: Share of each group that went to the expert. The budget holds over the mixture, not in each.
    """

    method: str
    alpha: float
    rate: float
    auroc: float
    accuracy: float
    brier: float
    missed_harm: float
    gain: float
    threshold: float | None = None
    k: int | None = None
    group_rates: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All methods at all budgets.

    Attributes:
        rows: Number of test rows.
        unsafe: How many of them are unsafe.
        tau: Scores of at least tau block.
        delta: Error probability of the certificates.
        cells: One for each method and budget.
    """

    rows: int
    unsafe: int
    tau: float
    delta: float
    cells: tuple[Cell, ...]

    def cell(self, method: str, alpha: float) -> Cell:
        """Return one cell.

        Raises:
            KeyError: This method or budget was not evaluated.
        """
        for cell in self.cells:
            if cell.method == method and cell.alpha == alpha:
                return cell
        raise KeyError((method, alpha))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {**asdict(self), "cells": [asdict(cell) for cell in self.cells]}


def evaluate(
    rows: ScoredRows,
    calibration: CalibrationScores,
    *,
    delta: float,
    alphas: Sequence[float] = ALPHAS,
    tau: float = 0.5,
    seed: int = 0,
) -> Evaluation:
    """Evaluate all methods at all budgets.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows, which certify the thresholds of ``ctd`` and ``uncertainty``.
        delta: Error probability of each certificate.
        alphas: Budgets.
        tau: Scores of at least tau block.
        seed: Of the random baseline.

    Raises:
        ConfigError: An alpha or delta lies outside (0, 1).
        DataError: The columns differ in length, hold values that are not finite, or hold rows of one label only.
    """
    _check(rows)
    cells = tuple(_cells(rows, calibration, alphas=alphas, delta=delta, tau=tau, seed=seed))
    return Evaluation(rows.label.size, int(rows.label.sum()), tau, delta, cells)


def _cells(
    rows: ScoredRows, calibration: CalibrationScores, *, alphas: Sequence[float], delta: float, tau: float, seed: int
) -> Iterator[Cell]:
    n = rows.label.size
    shuffled = np.random.default_rng(seed).permutation(n)
    by_value = np.argsort(-rows.value, kind="stable")
    signals = {
        "uncertainty": (_uncertainty(rows.p), sort_scores(_uncertainty(calibration.p))),
        "ctd": (rows.d, sort_scores(calibration.d)),
    }
    for alpha in alphas:
        share = largest_count(n, alpha)
        fixed = {
            "probe": np.zeros(n, dtype=np.bool_),
            "expert": np.ones(n, dtype=np.bool_),
            "random": _members(shuffled[:share], n),
            "oracle": _members(by_value[:share], n),
        }
        for method in METHODS:
            if method in fixed:
                yield _cell(rows, method, alpha, fixed[method], tau=tau)
                continue
            signal, calibration_scores = signals[method]
            certificate = certify(calibration_scores, alpha, delta)
            certified = certificate.k >= 0
            yield _cell(
                rows,
                method,
                alpha,
                signal > certificate.threshold,
                tau=tau,
                threshold=certificate.threshold if certified else None,
                k=certificate.k if certified else None,
            )


def _cell(
    rows: ScoredRows,
    method: str,
    alpha: float,
    delegated: BoolArray,
    *,
    tau: float,
    threshold: float | None = None,
    k: int | None = None,
) -> Cell:
    metrics = measure(rows.label, np.where(delegated, rows.expert, rows.p), tau=tau)
    return Cell(
        method=method,
        alpha=alpha,
        rate=float(delegated.mean()),
        auroc=metrics.auroc,
        accuracy=metrics.accuracy,
        brier=metrics.brier,
        missed_harm=metrics.missed_harm,
        gain=float(rows.value[delegated].mean()) if delegated.any() else 0.0,
        threshold=threshold,
        k=k,
        group_rates=None if rows.group is None else _group_rates(rows.group, delegated),
    )


def _uncertainty(p: FloatArray) -> FloatArray:
    """Return -|p - 1/2|: the larger, the less the probe is sure."""
    return -np.abs(p - 0.5)


def _members(indices: NDArray[np.intp], n: int) -> BoolArray:
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[indices] = True
    return chosen


def _group_rates(group: Sequence[str], delegated: BoolArray) -> dict[str, float]:
    names, index = np.unique(np.asarray(group), return_inverse=True)
    rates = np.bincount(index, weights=delegated) / np.bincount(index)
    return dict(zip(names.tolist(), rates.tolist(), strict=True))


def _check(rows: ScoredRows) -> None:
    columns = {"p": rows.p, "d": rows.d, "expert": rows.expert, "label": rows.label}
    for name, column in columns.items():
        if column.shape != rows.label.shape or column.ndim != 1:
            raise DataError(f"test column {name} has shape {column.shape} beside {rows.label.size} labels")
        if not np.isfinite(column).all():
            raise DataError(f"test column {name} holds values that are not finite")
    if rows.group is not None and len(rows.group) != rows.label.size:
        raise DataError(f"{len(rows.group)} groups stand beside {rows.label.size} test labels")
