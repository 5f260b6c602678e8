"""Six methods at six budgets: the evaluation that every policy carries.

:class:`calibrate.evaluate.methods.Methods` says what the methods are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from calibrate.evaluate.methods import METHODS, Delegation, Methods
from calibrate.evaluate.metrics import measure
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail.policy.budget import Guarantee
from ctd_guardrail.policy.store import CalibrationScores

__all__ = ["ALPHAS", "Cell", "Evaluation", "evaluate"]

ALPHAS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)

BoolArray = NDArray[np.bool_]


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
    guarantee: Guarantee = Guarantee.EXACT,
) -> Evaluation:
    """Evaluate all methods at all budgets.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows, which certify the thresholds of ``ctd`` and ``uncertainty``.
        delta: Error probability of each certificate.
        alphas: Budgets.
        tau: Scores of at least tau block.
        seed: Of the random baseline.
        guarantee: What alpha bounds, ``exact`` or ``simultaneous``.

    Raises:
        ConfigError: An alpha or delta lies outside (0, 1), or an alpha outside the range of the guarantee.
        DataError: The columns differ in length, hold values that are not finite, or hold rows of one label only.
    """
    rows.check()
    methods = Methods(rows, calibration, delta=delta, tau=tau, seed=seed, guarantee=guarantee)
    cells = tuple(
        _cell(rows, method, alpha, methods.delegate(method, alpha), tau=tau) for alpha in alphas for method in METHODS
    )
    return Evaluation(rows.label.size, int(rows.label.sum()), tau, delta, cells)


def _cell(rows: ScoredRows, method: str, alpha: float, delegation: Delegation, *, tau: float) -> Cell:
    delegated = delegation.rows
    metrics = measure(rows.label, rows.cascade_score(delegated), tau=tau)
    return Cell(
        method=method,
        alpha=alpha,
        rate=float(delegated.mean()),
        auroc=metrics.auroc,
        accuracy=metrics.accuracy,
        brier=metrics.brier,
        missed_harm=metrics.missed_harm,
        gain=float(rows.value[delegated].mean()) if delegated.any() else 0.0,
        threshold=delegation.threshold,
        k=delegation.k,
        group_rates=None if rows.group is None else _group_rates(rows.group, delegated),
    )


def _group_rates(group: Sequence[str], delegated: BoolArray) -> dict[str, float]:
    names, index = np.unique(np.asarray(group), return_inverse=True)
    rates = np.bincount(index, weights=delegated) / np.bincount(index)
    return dict(zip(names.tolist(), rates.tolist(), strict=True))
