"""Joint certificate of the budget and of performance risks.

All conversations certify the budget, without a split, a grid or labels: its risk falls as lambda rises, so the
certified thresholds are a half-line. The performance risks need a split: their tests follow an order that was learnt on
other rows. Each certificate takes delta / 2, and their intersection satisfies both. At delta each, one of them would
fail twice as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calibrate.risk.losses import Metric, Risk, risk_value
from calibrate.risk.outcome import (
    BUDGET,
    Outcome,
    best_setting,
    infeasible,
    p_table,
    settings_grid,
    top_thresholds,
    upper_bounds,
)
from calibrate.risk.pvalues import smallest_level
from calibrate.risk.rows import Rows
from calibrate.risk.splits import Split, random_split
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["certify_settings"]


def certify_settings(
    rows: Rows,
    risks: Sequence[Risk],
    *,
    alpha: float,
    delta: float,
    taus: Sequence[float] = (0.5,),
    bands: Sequence[float] = (0.0,),
    turns: TurnScores | None = None,
    unit: BudgetUnit = BudgetUnit.TURN,
    max_turns: int | None = None,
    split: Split | None = None,
    candidates: int = 50,
) -> Outcome:
    """Certify settings whose delegation rate is at most alpha and whose risks are within their bounds.

    With probability at least 1 - delta over the calibration draw, all certified settings satisfy all bounds. lambda,
    tau and the abstain band are chosen together if several are given. The best setting has the lowest error rate.

    Args:
        rows: Independent labelled rows. Those that the expert refused count in the budget.
        risks: Bounds to certify beside the budget, at least one. For the budget alone,
            :func:`ctd_guardrail.policy.budget.certify` uses all of delta.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1), for budget and risks together.
        taus: Decision thresholds to choose from, fixed beforehand.
        bands: Abstain bands to choose from, fixed beforehand.
        turns: Delegation values that certify the budget: those of all turns of the conversations. None: each row is a
            conversation of one turn.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.
        split: Rows to optimise on and rows to test the risks on. None: a random split, 30/70.
        candidates: Number of thresholds to consider.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1), or there is no risk.
        DataError: There are too few rows to split.
    """
    if not risks:
        raise ConfigError("there is no risk to bound", key="risk", hint="Name a risk, or certify the budget alone")
    half = delta / 2
    turns = TurnScores.of(rows.d) if turns is None else turns

    def certified_at(level: float) -> Certificate:
        return certify(turns, level, half, unit=unit, max_turns=max_turns)

    budget = certified_at(alpha)
    if budget.status is Status.INFEASIBLE:
        return Outcome(Status.INFEASIBLE, binding=(BUDGET,), feasible={BUDGET: budget.alpha_min})

    split = split or random_split(len(rows))
    seen, held_out = rows.take(split.optimisation), rows.take(split.testing)
    settings = settings_grid(top_thresholds(seen.d, alpha, candidates), taus, bands)
    # The most promising setting first. If p-values underflow together, the lower error rate decides.
    seen_p = np.max([*p_table(risks, seen, settings, half).values()], axis=0)
    seen_error = [risk_value(Metric.ERROR, seen, setting) for setting in settings]
    order = np.lexsort((seen_error, seen_p)).tolist()
    table = p_table(risks, held_out, settings, half)
    passed = fixed_sequence(np.max([*table.values()], axis=0), half, order)
    performing = [settings[i] for i in np.flatnonzero(passed).tolist()]
    if not performing:
        feasible = upper_bounds(risks, held_out, settings[order[0]], half)
        return infeasible(table, order[0], feasible, half)

    certified = tuple(setting for setting in performing if setting.threshold >= budget.threshold)
    if not certified:
        largest = 1.0 if unit is BudgetUnit.TURN else float(budget.max_turns)
        return _over_budget(certified_at, largest, max(setting.threshold for setting in performing))
    return Outcome(Status.CERTIFIED, best_setting(rows, certified), certified)


def _over_budget(certified_at: Callable[[float], Certificate], largest: float, threshold: float) -> Outcome:
    """Return the outcome if only thresholds that delegate too much meet the risks.

    Args:
        certified_at: Certifies a budget.
        largest: Bound of all budgets.
        threshold: The largest threshold that meets the risks.
    """

    def is_too_small(share: float) -> float:
        return float(certified_at(share * largest).threshold > threshold)

    return Outcome(Status.INFEASIBLE, binding=(BUDGET,), feasible={BUDGET: largest * smallest_level(is_too_small, 0.5)})
