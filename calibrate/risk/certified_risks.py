"""Performance risks beside the budget: from the configuration to the certified setting and its record."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from calibrate.config.file import BudgetConfig
from calibrate.risk.losses import Risk
from calibrate.risk.outcome import BUDGET, Outcome
from calibrate.risk.pareto import pareto
from calibrate.risk.rows import Rows, Setting
from calibrate.risk.structured import structured
from ctd_guardrail.errors import InfeasibleBudgetError
from ctd_guardrail.policy.budget import Status, min_alpha, min_rows
from ctd_guardrail.policy.manifest import PerformanceRecord, RiskBound
from ctd_guardrail.policy.selection import Costs

__all__ = ["certify_performance", "to_record"]


def certify_performance(rows: Rows, budget: BudgetConfig, *, refused: NDArray[np.float64]) -> Setting:
    """Return the best certified setting.

    Args:
        rows: Calibration rows that the expert gave a score for: the risks are those of such inputs.
        budget: Budget, risks and method; not ``closed_form``.
        refused: Delegation values of the calibration rows that it refused: they count in the budget.

    Raises:
        InfeasibleBudgetError: No setting holds all of it; the message says which risk binds and what would be
            feasible.
    """
    costs = Costs(**budget.costs.model_dump())
    procedure: Callable[..., Outcome] = structured if budget.method == "structured" else pareto
    outcome = procedure(
        rows,
        alpha=budget.alpha,
        delta=budget.delta,
        risks=[Risk(risk.metric, risk.max, costs) for risk in budget.risk],
        criterion=budget.criterion,
        costs=costs,
        taus=budget.taus,
        bands=budget.bands,
        refused=refused,
    )
    if outcome.status is Status.CERTIFIED and outcome.setting is not None:
        return outcome.setting
    n = len(rows) + refused.size
    bounds = {BUDGET: budget.alpha} | {risk.metric.value: risk.max for risk in budget.risk}
    binding = ", ".join(f"{name} of at most {bounds[name]:g}" for name in outcome.binding)
    feasible = ", ".join(f"{name} of at most {bound:.3f}" for name, bound in outcome.feasible.items())
    raise InfeasibleBudgetError(
        f"{n} calibration rows cannot certify, at delta = {budget.delta:g} for all of it, {binding}",
        alpha=budget.alpha,
        alpha_min=min_alpha(n, budget.delta),
        n_min=min_rows(budget.alpha, budget.delta),
        hint=f"The most promising setting would have met: {feasible}. Relax a bound, or add calibration rows",
    )


def to_record(setting: Setting, budget: BudgetConfig) -> PerformanceRecord | None:
    """Return what the policy keeps; None where only the budget is certified."""
    if budget.method == "closed_form":
        return None
    return PerformanceRecord(
        method=budget.method,
        risks=tuple(RiskBound(metric=risk.metric.value, max=risk.max) for risk in budget.risk),
        threshold=setting.threshold if math.isfinite(setting.threshold) else None,
        band=setting.band,
    )
