"""``method: pareto``: Pareto testing, the procedure of the paper (arXiv 2604.14251, section 4; arXiv 2210.07913).

Candidates and their order come from an optimisation split: the Pareto front of (delegation rate, risks, criterion),
most conservative first. A fixed-sequence test of each at the full delta on the other rows certifies the front up to
the first failure. It serves several risks and any number of settings, and it pays for that with the split:
for the budget alone the closed form of :mod:`ctd_guardrail.policy.budget` certifies more from the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.losses import Risk, risk_value
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
from calibrate.risk.rows import Rows, Setting
from calibrate.risk.splits import Split, random_split
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.policy.budget import Status
from ctd_guardrail.policy.guarantees import check_share
from ctd_guardrail.policy.selection import Costs, Criterion

__all__ = ["pareto"]

FloatArray = NDArray[np.float64]


def pareto(
    rows: Rows,
    *,
    alpha: float,
    delta: float,
    risks: Sequence[Risk] = (),
    criterion: Criterion = Criterion.ACCURACY,
    costs: Costs | None = None,
    taus: Sequence[float] = (0.5,),
    bands: Sequence[float] = (0.0,),
    refused: FloatArray | None = None,
    split: Split | None = None,
    candidates: int = 100,
) -> Outcome:
    """Certify settings whose delegation rate is at most alpha and whose risks are within their bounds.

    With probability at least 1 - delta over the calibration draw, all certified settings satisfy all of it.

    Args:
        rows: Independent labelled rows.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1), for budget and risks together.
        risks: Bounds to hold beside the budget.
        criterion: What the best of the certified settings is best at.
        costs: For the criterion ``cost``.
        taus: Decision thresholds to choose from, fixed beforehand.
        bands: Abstain bands to choose from, fixed beforehand.
        refused: Delegation values of rows of the same draw that have no expert score: they count in the budget alone.
        split: Which rows to optimise and test on, of ``rows`` and then ``refused``; None splits 30/70 at random.
        candidates: Number of thresholds to consider.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
        DataError: There are too few rows to split.
    """
    check_share("alpha", alpha)
    check_share("delta", delta)
    unscored = np.empty(0) if refused is None else refused
    # Drawn from all rows: the share of the refused ones among those that are tested is then the inputs' own.
    split = split or random_split(len(rows) + unscored.size)
    seen, held_out = (rows.take(part[part < len(rows)]) for part in (split.optimisation, split.testing))
    d = np.concatenate([rows.d, unscored])[split.testing]

    # Thresholds that are over budget here have next to no chance there: the grid is finer without them.
    settings = settings_grid(top_thresholds(seen.d, alpha, candidates), taus, bands)
    front = _front(seen, settings, risks, criterion, costs)
    seen_p = np.max([*_p_table(seen, front, alpha, delta, risks, d=seen.d).values()], axis=0)
    seen_rate = [float(seen.delegated(setting).mean()) for setting in front]
    order = np.lexsort((seen_rate, seen_p)).tolist()

    table = _p_table(held_out, front, alpha, delta, risks, d=d)
    passed = fixed_sequence(np.max([*table.values()], axis=0), delta, order)
    certified = tuple(front[i] for i in np.flatnonzero(passed).tolist())
    if certified:
        return Outcome(Status.CERTIFIED, best_setting(rows, certified, criterion, costs), certified)
    first = front[order[0]]
    count = int((d > first.threshold).sum())
    rate = smallest_level(lambda level: binomial_p(count, d.size, level), delta)
    feasible = {BUDGET: rate, **upper_bounds(risks, held_out, first, delta)}
    return infeasible(table, order[0], feasible, delta)


def _p_table(
    rows: Rows, settings: Sequence[Setting], alpha: float, delta: float, risks: Sequence[Risk], *, d: FloatArray
) -> dict[str, FloatArray]:
    rates = [binomial_p(int((d > setting.threshold).sum()), d.size, alpha) for setting in settings]
    return {BUDGET: np.array(rates), **p_table(risks, rows, settings, delta)}


def _front(
    rows: Rows, settings: Sequence[Setting], risks: Sequence[Risk], criterion: Criterion, costs: Costs | None
) -> list[Setting]:
    """Return the settings that no other beats in rate, a risk or the criterion without losing in another."""
    points = np.array(
        [
            [
                float(rows.delegated(setting).mean()),
                *(risk_value(risk.metric, rows, setting, risk.costs) for risk in risks),
                objective(rows, setting, criterion, costs),
            ]
            for setting in settings
        ]
    )
    points = np.nan_to_num(points, nan=np.inf, posinf=np.inf)
    return [setting for setting, point in zip(settings, points, strict=True) if not _dominated(point, points)]


def _dominated(point: FloatArray, points: FloatArray) -> bool:
    return bool(((points <= point).all(axis=1) & (points < point).any(axis=1)).any())
