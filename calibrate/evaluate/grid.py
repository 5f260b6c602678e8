"""The grid of methods, budgets and figures: the one place where the cascade is measured.

The record in the policy, the study and the report's budget explorer are views of this grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from calibrate.evaluate.figures import Figure, mean_of, measure
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail._typing import BoolArray
from ctd_guardrail.policy.budget import Guarantee
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import CalibrationScores, Policy
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["ALPHAS", "Cell", "Grid", "budget_share", "policy_grid", "policy_share"]

ALPHAS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Budgets of every record and every table."""
_LARGEST_SHARE: Final = 0.95
# Neighbouring budgets often delegate the same rows. Kept figures hold influences, so their number is bounded.
_KEPT: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One method at one budget.

    Attributes:
        method: A name from :attr:`Methods.names`.
        alpha: The budget.
        delegated: Rows that go to the expert, shape [n].
        threshold: The certified threshold; None if the method has none or alpha cannot be certified.
        k: Number of calibration rows above the certificate's threshold; None if there is no threshold.
        figures: ``rate``, the share of the rows that go to the expert, and every figure of
            :func:`calibrate.evaluate.figures.measure`.
    """

    method: str
    alpha: float
    delegated: BoolArray
    threshold: float | None
    k: int | None
    figures: Mapping[str, Figure]


class Grid:
    """Figures of every method at every budget on the same rows. A cell is computed when it is read.

    Args:
        rows: Test rows, which neither training nor calibration has seen.
        calibration: Scores of the calibration rows, which certify thresholds.
        delta: Error probability of each certificate.
        tau: A score of at least tau blocks.
        seed: Seed of the random baseline.
        guarantee: What alpha bounds.
        turns: Delegation values that certify d instead of the calibration rows'.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.

    Attributes:
        rows: Test rows.
        calibration: Scores of the calibration rows.
        delta: Error probability of each certificate.
        tau: A score of at least tau blocks.
        seed: Seed of the random baseline.
        guarantee: What alpha bounds.
        methods: Every method by name.

    Raises:
        DataError: The columns differ in length, or hold values that are not finite.
    """

    def __init__(
        self,
        rows: ScoredRows,
        calibration: CalibrationScores,
        *,
        delta: float,
        tau: float = 0.5,
        seed: int = 0,
        guarantee: Guarantee = Guarantee.EXACT,
        turns: TurnScores | None = None,
        max_turns: int | None = None,
    ) -> None:
        rows.check()
        self.rows, self.calibration = rows, calibration
        self.delta, self.tau, self.seed, self.guarantee = delta, tau, seed, guarantee
        self.methods = Methods(
            rows,
            calibration,
            delta=delta,
            tau=tau,
            seed=seed,
            guarantee=guarantee,
            turns=turns,
            max_turns=max_turns,
        )
        self._measure_packed = lru_cache(maxsize=_KEPT)(self._measure)

    def cell(self, method: str, alpha: float) -> Cell:
        """Measure one method at one budget.

        Raises:
            KeyError: There is no such method.
            ConfigError: alpha or delta lies outside (0, 1), or alpha outside the range of the guarantee.
            DataError: All rows have one label.
        """
        delegation = self.methods.delegate(method, alpha)
        figures = self._measure_packed(np.packbits(delegation.rows).tobytes())
        return Cell(method, alpha, delegation.rows, delegation.threshold, delegation.k, figures)

    def group_rates(self, delegated: BoolArray) -> dict[str, float]:
        """Return the share of each group that goes to the expert; empty if the rows have no groups."""
        if self.rows.group is None:
            return {}
        names, index = np.unique(np.asarray(self.rows.group), return_inverse=True)
        rates = np.bincount(index, weights=delegated) / np.bincount(index)
        return dict(zip(names.tolist(), rates.tolist(), strict=True))

    def _measure(self, packed: bytes) -> Mapping[str, Figure]:
        rows = self.rows
        delegated = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=rows.label.size).astype(np.bool_)
        rate = mean_of(delegated, rows.clusters)
        return {"rate": rate, **measure(rows.label, rows.cascade_score(delegated), rows.clusters, tau=self.tau)}


def budget_share(alpha: float, unit: BudgetUnit, turns: TurnScores) -> float:
    """Return a budget as a share of the turns, the measure of every grid: at most .95.

    Args:
        alpha: The budget.
        unit: What alpha is a share or a number of.
        turns: Turns behind the certificate. Their mean number in a conversation converts calls per conversation.
    """
    if unit is BudgetUnit.TURN:
        return alpha
    return min(alpha * turns.conversations / turns.turns, _LARGEST_SHARE)


def policy_share(policy: Policy) -> float:
    """Return the budget of a policy as a share of the turns."""
    in_force = policy.manifest.in_force
    return budget_share(in_force.alpha, in_force.unit, policy.scores)


def policy_grid(policy: Policy, rows: ScoredRows, *, guarantee: Guarantee = Guarantee.EXACT) -> Grid:
    """Return the grid of a policy, with the thresholds that the rail derives from it.

    Args:
        policy: Its manifest states delta, its scores certify.
        rows: Test rows.
        guarantee: What alpha bounds.

    Raises:
        DataError: The rows cannot be evaluated.
    """
    manifest, in_force = policy.manifest, policy.manifest.in_force
    return Grid(
        rows,
        policy.calibration,
        delta=spent_delta(in_force.delta, in_force.looks),
        tau=manifest.decision_threshold,
        seed=manifest.calibration.seed,
        guarantee=guarantee,
        turns=policy.turns,
        max_turns=in_force.max_turns,
    )
