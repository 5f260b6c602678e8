"""Outcome of a certification of settings, and the steps that lead to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Final

import numpy as np

from calibrate.risk.losses import Metric, Risk, risk_value
from calibrate.risk.rows import Rows, Setting
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.policy.budget import Status

__all__ = [
    "BUDGET",
    "Outcome",
    "best_setting",
    "infeasible",
    "p_table",
    "settings_grid",
    "top_thresholds",
    "upper_bounds",
]

BUDGET: Final = "budget"
"""Name of the delegation budget among the risks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The certified settings and the best of them, or the bounds that no setting meets.

    Attributes:
        status: Whether any setting is certified.
        setting: The certified setting with the lowest error rate; None if infeasible.
        certified: Every certified setting. They hold together, so one of them may be chosen after looking.
        binding: If infeasible, the risks that no setting meets, ``budget`` or names of metrics. If some setting meets
            each of them, the risks that fail at the most promising setting.
        feasible: If infeasible, for each risk the bound that the most promising setting would have met. It is a hint
            for the next attempt on fresh rows and no certificate.
    """

    status: Status
    setting: Setting | None = None
    certified: tuple[Setting, ...] = ()
    binding: tuple[str, ...] = ()
    feasible: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def best_setting(rows: Rows, certified: Sequence[Setting]) -> Setting:
    """Return the certified setting with the lowest error rate; of equals, the one that delegates least.

    Args:
        rows: Labelled rows.
        certified: Settings that are certified together, at least one.
    """
    return min(certified, key=lambda setting: (_error(rows, setting), float(rows.delegated(setting).mean())))


def settings_grid(thresholds: FloatArray, taus: Sequence[float], bands: Sequence[float]) -> list[Setting]:
    """Return every combination of threshold, decision threshold and abstain band."""
    return [Setting(*values) for values in product(thresholds.tolist(), taus, bands)]


def top_thresholds(d: FloatArray, share: float, count: int) -> FloatArray:
    """Return at most ``count`` thresholds, +inf first, that delegate from none to ``share`` of the rows.

    Args:
        d: Delegation values of optimisation rows, shape [n].
        share: Largest share of these rows to delegate, in (0, 1].
        count: Number of thresholds, at least 2.
    """
    falling = np.sort(d)[::-1]
    last = min(falling.size - 1, int(np.floor(share * falling.size)))
    ranks = np.unique(np.linspace(0, last, min(count - 1, last + 1)).round().astype(np.intp))
    return np.append(np.inf, np.unique(falling[ranks])[::-1])


def p_table(risks: Sequence[Risk], rows: Rows, settings: Sequence[Setting], delta: float) -> dict[str, FloatArray]:
    """Return for each risk its p-value at every setting, shape [settings].

    The largest over the risks is the p-value of "one of them is above its bound". So a certificate for all of them
    tests each risk at the full delta.
    """
    return {
        risk.metric.value: np.array([risk.p_value(rows, setting, delta=delta) for setting in settings])
        for risk in risks
    }


def upper_bounds(risks: Sequence[Risk], rows: Rows, setting: Setting, delta: float) -> dict[str, float]:
    """Return for each risk the smallest bound that one setting meets at delta."""
    return {risk.metric.value: risk.upper_bound(rows, setting, delta=delta) for risk in risks}


def infeasible(table: Mapping[str, FloatArray], first: int, feasible: Mapping[str, float], delta: float) -> Outcome:
    """Return the outcome that names the binding risks.

    Args:
        table: p-values of each risk at every setting.
        first: Index of the most promising setting, which was tested first and failed.
        feasible: For each risk the bound that this setting meets.
        delta: Level that the p-values are compared with.
    """
    nowhere = tuple(name for name, p in table.items() if p.min() > delta)
    here = tuple(name for name, p in table.items() if p[first] > delta)
    return Outcome(Status.INFEASIBLE, binding=nowhere or here, feasible=feasible)


def _error(rows: Rows, setting: Setting) -> float:
    """Return the error rate, infinite if no row gets a verdict."""
    value = risk_value(Metric.ERROR, rows, setting)
    return math.inf if math.isnan(value) else value
