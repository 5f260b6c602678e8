"""Performance risks of the cascade, their p-values and their upper confidence bounds.

========== ================================================================= ====================
metric     what is bounded                                                   p-value
========== ================================================================= ====================
error      P(wrong verdict), of the inputs that get one                      binomial
fnr        P(let through and not abstained | unsafe): missed harm            binomial, unsafe rows
fpr        P(blocked and not abstained | safe): false alarms                 binomial, safe rows
abstained  P(no verdict)                                                     binomial
brier      E (score - label)^2                                               betting
log_loss   E min(-ln P(label), 7)                                            betting
cost       mean cost of an input, in the unit of the costs                   betting
auroc_error  1 - AUROC                                                       U-statistic
========== ================================================================= ====================

A rate among some of the rows is tested on these rows alone: given how many they are, their losses are independent
with that rate. AUROC is no mean of independent losses; Hoeffding (1963, section 5) reduces a two-sample U-statistic to
the mean of m = min(unsafe, safe) of them by convexity, which covers both the KL and the Bentkus bound. DeLong's and
bootstrap intervals are approximations and fail up to seven times as often as stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.pvalues import betting_p, binomial_p, hoeffding_bentkus_p, smallest_level
from calibrate.risk.rows import Rows, Setting
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.selection import Costs, auroc_error

__all__ = ["LOG_LOSS_CAP", "Metric", "Risk", "losses", "risk_value"]

# -ln P is unbounded, and an unbounded loss has no finite-sample guarantee: it is cut where P is .0009.
LOG_LOSS_CAP: Final = 7.0

FloatArray = NDArray[np.float64]


class Metric(StrEnum):
    """Which risk; the table at the top of this module says what each bounds."""

    ERROR = "error"
    FNR = "fnr"
    FPR = "fpr"
    ABSTAINED = "abstained"
    BRIER = "brier"
    LOG_LOSS = "log_loss"
    COST = "cost"
    AUROC_ERROR = "auroc_error"


_COUNTED: Final = frozenset({Metric.ERROR, Metric.FNR, Metric.FPR, Metric.ABSTAINED})


@dataclass(frozen=True, slots=True)
class Risk:
    """A risk that must stay below a bound: ``{metric: fnr, max: 0.1}``.

    Attributes:
        metric: Which risk.
        max: The bound, in the metric's own unit.
        costs: For ``cost``.

    Raises:
        ConfigError: The bound is not between 0 and the largest possible loss.
    """

    metric: Metric
    max: float
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        """Hold what the attributes promise."""
        if not 0.0 < self.max < self.scale:
            raise ConfigError(
                f"{self.metric.value} of at most {self.max!r} is not a bound between 0 and {self.scale:g}",
                key="risk.max",
            )

    @property
    def scale(self) -> float:
        """The largest loss of one row."""
        if self.metric is Metric.COST:
            return self.costs.largest
        return LOG_LOSS_CAP if self.metric is Metric.LOG_LOSS else 1.0

    def p_value(self, rows: Rows, setting: Setting, *, delta: float) -> float:
        """Return the p-value of "the risk at this setting is above ``max``".

        Args:
            rows: Independent rows that the setting was not chosen on.
            setting: Where the cascade runs.
            delta: Error probability that the betting bound is tuned for.
        """
        return self._p_at(self.max / self.scale, rows, setting, delta)

    def upper_bound(self, rows: Rows, setting: Setting, *, delta: float) -> float:
        """Return the smallest ``max`` that these rows would certify for this one setting at delta."""
        return self.scale * smallest_level(lambda level: self._p_at(level, rows, setting, delta), delta)

    def _p_at(self, level: float, rows: Rows, setting: Setting, delta: float) -> float:
        if self.metric is Metric.AUROC_ERROR:
            pairs = int(min(rows.label.sum(), len(rows) - rows.label.sum()))
            return (
                hoeffding_bentkus_p(risk_value(Metric.AUROC_ERROR, rows, setting) * pairs, pairs, level)
                if pairs
                else 1.0
            )
        counted = losses(self.metric, rows, setting, self.costs)
        if self.metric in _COUNTED:
            return binomial_p(int(counted.sum()), counted.size, level)
        return betting_p(counted / self.scale, level, delta=delta)


def risk_value(metric: Metric, rows: Rows, setting: Setting, costs: Costs | None = None) -> float:
    """Return the empirical risk at a setting; NaN where no row counts.

    Raises:
        DataError: AUROC is asked for and the rows are all safe or all unsafe.
    """
    if metric is Metric.AUROC_ERROR:
        return auroc_error(rows.score(setting), rows.label)
    counted = losses(metric, rows, setting, costs)
    return float(counted.mean()) if counted.size else math.nan


def losses(metric: Metric, rows: Rows, setting: Setting, costs: Costs | None = None) -> FloatArray:
    """Return the losses of the rows that count, in the metric's own unit, shape [rows that count].

    Args:
        metric: Any but ``auroc_error``, which is a mean over pairs.
        rows: Labelled rows.
        setting: Where the cascade runs.
        costs: For ``cost``.

    Raises:
        ConfigError: The metric has no loss of one row.
    """
    score = rows.score(setting)
    undecided = np.abs(score - setting.tau) < setting.band
    unsafe = rows.label == 1.0
    blocked = (score >= setting.tau) & ~undecided
    missed = unsafe & (score < setting.tau) & ~undecided
    everything = np.ones(len(rows), dtype=np.bool_)
    value: NDArray[np.generic]
    match metric:
        case Metric.ERROR:
            value, counted = missed | (blocked & ~unsafe), ~undecided
        case Metric.FNR:
            value, counted = missed, unsafe
        case Metric.FPR:
            value, counted = blocked, ~unsafe
        case Metric.ABSTAINED:
            value, counted = undecided, everything
        case Metric.BRIER:
            value, counted = np.square(score - rows.label), everything
        case Metric.LOG_LOSS:
            given = np.where(unsafe, score, 1.0 - score)
            # The inner cut keeps ln 0 out; the outer one is exact where exp and ln round.
            value = np.minimum(-np.log(np.maximum(given, math.exp(-2 * LOG_LOSS_CAP))), LOG_LOSS_CAP)
            counted = everything
        case Metric.COST:
            costs = costs or Costs()
            outcome = costs.missed * missed + costs.false_alarm * (blocked & ~unsafe) + costs.abstained * undecided
            value, counted = outcome + costs.call * rows.delegated(setting), everything
        case Metric.AUROC_ERROR:
            raise ConfigError("AUROC has no loss of one row", key="risk.metric")
    return np.asarray(value[counted], dtype=np.float64)
