"""Pareto testing, the calibration of the paper (arXiv 2604.14251, section 4; arXiv 2210.07913).

The candidates and their order come from an optimisation split: the Pareto front of (delegation rate, risks, error),
most conservative first. A fixed-sequence test on the other rows, each at the full delta, certifies the front up to the
first failure. The split makes it less powerful: for the budget alone, the closed form of
:mod:`ctd_guardrail.policy.budget` certifies more from the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from calibrate.risk.pvalues import binomial_p, smallest_level
from calibrate.risk.rows import Rows, Setting
from calibrate.risk.splits import Split, random_split
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.policy.budget import Status
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["pareto"]


def pareto(
    rows: Rows,
    *,
    alpha: float,
    delta: float,
    risks: Sequence[Risk] = (),
    split: Split | None = None,
    candidates: int = 100,
) -> Outcome:
    """Certify settings whose delegation rate is at most alpha and whose risks are within their bounds.

    With probability at least 1 - delta over the calibration draw, all certified settings satisfy all bounds.

    Args:
        rows: Independent labelled rows.
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1), for budget and risks together.
        risks: Bounds beside the budget.
        split: Rows to optimise and to test on. None: a random split, 30/70.
        candidates: Number of thresholds to consider.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
        DataError: There are too few rows to split.
    """
    check_share("alpha", alpha)
    check_share("delta", delta)
    split = split or random_split(len(rows))
    seen, held_out = rows.take(split.optimisation), rows.take(split.testing)

    # Thresholds that are over budget here would almost never pass. Without them the grid is finer.
    front = _front(seen, settings_grid(top_thresholds(seen.d, alpha, candidates), (0.5,), (0.0,)), risks)
    seen_p = np.max([*_p_table(seen, front, alpha, delta, risks).values()], axis=0)
    seen_rate = [float(seen.delegated(setting).mean()) for setting in front]
    order = np.lexsort((seen_rate, seen_p)).tolist()

    table = _p_table(held_out, front, alpha, delta, risks)
    passed = fixed_sequence(np.max([*table.values()], axis=0), delta, order)
    certified = tuple(front[i] for i in np.flatnonzero(passed).tolist())
    if certified:
        return Outcome(Status.CERTIFIED, best_setting(rows, certified), certified)
    first = front[order[0]]
    count = int(held_out.delegated(first).sum())
    rate = smallest_level(lambda level: binomial_p(count, len(held_out), level), delta)
    return infeasible(table, order[0], {BUDGET: rate, **upper_bounds(risks, held_out, first, delta)}, delta)


def _p_table(
    rows: Rows, settings: Sequence[Setting], alpha: float, delta: float, risks: Sequence[Risk]
) -> dict[str, FloatArray]:
    rates = [binomial_p(int(rows.delegated(setting).sum()), len(rows), alpha) for setting in settings]
    return {BUDGET: np.array(rates), **p_table(risks, rows, settings, delta)}


def _front(rows: Rows, settings: Sequence[Setting], risks: Sequence[Risk]) -> list[Setting]:
    """Return the settings that no other setting dominates in rate, risks and error."""
    metrics = [*(risk.metric for risk in risks), Metric.ERROR]
    points = np.array(
        [
            [float(rows.delegated(setting).mean()), *(risk_value(metric, rows, setting) for metric in metrics)]
            for setting in settings
        ]
    )
    points = np.nan_to_num(points, nan=np.inf, posinf=np.inf)
    return [setting for setting, point in zip(settings, points, strict=True) if not _dominated(point, points)]


def _dominated(point: FloatArray, points: FloatArray) -> bool:
    return bool(((points <= point).all(axis=1) & (points < point).any(axis=1)).any())
