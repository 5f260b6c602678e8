"""``method: structured``: the closed form for the budget, intersected with a certificate for the performance risks.

The budget has a structure that Pareto testing does not use: its risk falls as lambda rises, so all rows certify a
half-line of thresholds without a split, a grid or labels. Only the performance risks need the split. Each of the two
certificates gets delta / 2 (at delta each, a mistake, one of them fails twice as often); their intersection holds both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.losses import Risk
from calibrate.risk.outcome import (
    BUDGET,
    Outcome,
    best_setting,
    infeasible,
    objective,
    p_table,
    settings_grid,
    top_thresholds,
    upper_bounds,
)
from calibrate.risk.pvalues import binomial_p, smallest_level
from calibrate.risk.rows import Rows
from calibrate.risk.splits import Split, random_split
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Status, certify, sort_scores
from ctd_guardrail.policy.selection import Costs, Criterion

__all__ = ["structured"]

FloatArray = NDArray[np.float64]


def structured(
    rows: Rows,
    *,
    alpha: float,
    delta: float,
    risks: Sequence[Risk],
    criterion: Criterion = Criterion.ACCURACY,
    costs: Costs | None = None,
    taus: Sequence[float] = (0.5,),
    bands: Sequence[float] = (0.0,),
    scores: FloatArray | None = None,
    refused: FloatArray | None = None,
    split: Split | None = None,
    candidates: int = 50,
) -> Outcome:
    """Certify settings whose delegation rate is at most alpha and whose risks are within their bounds.

    With probability at least 1 - delta over the calibration draw, all certified settings satisfy all of it. lambda,
    tau and the abstain band are chosen together where several are given.

    Args:
        rows: Independent labelled rows.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1), for budget and risks together.
        risks: Bounds to hold beside the budget, at least one; without any, :func:`certify` and
            :func:`ctd_guardrail.policy.selection.best_threshold` use all of delta.
        criterion: What the best of the certified settings is best at.
        costs: For the criterion ``cost``.
        taus: Decision thresholds to choose from, fixed beforehand.
        bands: Abstain bands to choose from, fixed beforehand.
        scores: Delegation values for the budget's certificate, such as unlabelled traffic; None takes the rows'.
        refused: Delegation values of rows of the same draw that have no expert score: they count in the budget, where
            the rows' own values do.
        split: Which rows to optimise and test the risks on; None splits 30/70 at random.
        candidates: Number of thresholds to consider.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1), or there is no risk.
        DataError: There are too few rows to split.
    """
    if not risks:
        raise ConfigError("there is no risk to bound", key="risk", hint="Name one, or use method: budget")
    half = delta / 2
    if scores is None:
        scores = rows.d if refused is None else np.concatenate([rows.d, refused])
    sorted_scores = sort_scores(scores)
    budget = certify(sorted_scores, alpha, half)
    if budget.status is Status.INFEASIBLE:
        return Outcome(Status.INFEASIBLE, binding=(BUDGET,), feasible={BUDGET: budget.alpha_min})

    split = split or random_split(len(rows))
    seen, held_out = rows.take(split.optimisation), rows.take(split.testing)
    settings = settings_grid(top_thresholds(seen.d, alpha, candidates), taus, bands)
    # Most promising first; where p-values underflow together, the better performer.
    seen_p = np.max([*p_table(risks, seen, settings, half).values()], axis=0)
    seen_objective = [objective(seen, setting, criterion, costs) for setting in settings]
    order = np.lexsort((seen_objective, seen_p)).tolist()
    table = p_table(risks, held_out, settings, half)
    passed = fixed_sequence(np.max([*table.values()], axis=0), half, order)
    performing = [settings[i] for i in np.flatnonzero(passed).tolist()]
    if not performing:
        feasible = upper_bounds(risks, held_out, settings[order[0]], half)
        return infeasible(table, order[0], feasible, half)

    certified = tuple(setting for setting in performing if setting.threshold >= budget.threshold)
    if not certified:
        return _over_budget(sorted_scores, max(setting.threshold for setting in performing), half)
    return Outcome(Status.CERTIFIED, best_setting(rows, certified, criterion, costs), certified)


def _over_budget(sorted_scores: FloatArray, threshold: float, delta: float) -> Outcome:
    """Return the outcome for risks that are met only by thresholds that delegate too much."""
    n = sorted_scores.size
    above = n - int(np.searchsorted(sorted_scores, threshold, side="right"))
    rate = smallest_level(lambda level: binomial_p(above, n, level), delta)
    return Outcome(Status.INFEASIBLE, binding=(BUDGET,), feasible={BUDGET: rate})
