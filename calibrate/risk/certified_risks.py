"""Performance risks beside the budget: the certified setting of a policy, and its record."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrate.risk.certify import certify_settings
from calibrate.risk.losses import Risk
from calibrate.risk.outcome import BUDGET
from calibrate.risk.rows import Rows, Setting
from ctd_guardrail.errors import InfeasibleBudgetError
from ctd_guardrail.policy.budget import Status, certify
from ctd_guardrail.policy.manifest import PerformanceRecord, RiskBound
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["certify_performance", "to_record"]


def certify_performance(
    rows: Rows,
    risks: Sequence[Risk],
    *,
    alpha: float,
    delta: float,
    taus: Sequence[float],
    bands: Sequence[float],
    turns: TurnScores,
    unit: BudgetUnit = BudgetUnit.TURN,
    max_turns: int | None = None,
) -> Setting:
    """Return the best certified setting.

    Args:
        rows: Calibration rows.
        risks: Bounds to certify beside the budget, at least one.
        alpha: Budget.
        delta: Error probability of budget and risks together.
        taus: Decision thresholds to choose from.
        bands: Abstain bands to choose from.
        turns: Delegation values of all turns of the calibration conversations, which certify the budget.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.

    Raises:
        InfeasibleBudgetError: No setting meets all bounds. The message states the binding risks and the bounds that
            would be feasible.
    """
    outcome = certify_settings(
        rows, risks, alpha=alpha, delta=delta, taus=taus, bands=bands, turns=turns, unit=unit, max_turns=max_turns
    )
    if outcome.status is Status.CERTIFIED and outcome.setting is not None:
        return outcome.setting
    budget = certify(turns, alpha, delta, unit=unit, max_turns=max_turns)
    bounds = {BUDGET: alpha} | {risk.metric.value: risk.max for risk in risks}
    binding = ", ".join(f"{name} of at most {bounds[name]:g}" for name in outcome.binding)
    feasible = ", ".join(f"{name} of at most {bound:.3f}" for name, bound in outcome.feasible.items())
    raise InfeasibleBudgetError(
        f"{turns.conversations} calibration conversations cannot certify, at delta = {delta:g} for all, {binding}",
        alpha=alpha,
        alpha_min=budget.alpha_min,
        n_min=budget.n_min,
        hint=f"The most promising setting would have met: {feasible}. Relax a bound, or add calibration conversations",
    )


def to_record(setting: Setting, risks: Sequence[Risk]) -> PerformanceRecord:
    """Return the record of a certified setting in the policy."""
    return PerformanceRecord(
        risks=tuple(RiskBound(metric=risk.metric.value, max=risk.max) for risk in risks),
        threshold=setting.threshold if math.isfinite(setting.threshold) else None,
        band=setting.band,
    )
