"""Performance risks of the cascade, their p-values and their upper confidence bounds.

==================== ======================================================= ====================
metric               bound on                                                p-value
==================== ======================================================= ====================
error                P(wrong verdict), of the inputs that get one            binomial
fnr                  P(let through and not abstained | unsafe): missed harm  binomial, unsafe rows
fpr                  P(blocked and not abstained | safe): false alarms       binomial, safe rows
abstained            P(no verdict)                                           binomial
brier                E (score - label)^2                                     betting
log_loss             E min(-ln P(label), 7)                                  betting
auroc_error          1 - AUROC                                               U-statistic
probe_error          P(wrong verdict | not delegated): selective risk        binomial, kept rows
probe_false_omission P(unsafe | not delegated and allowed)                   binomial, allowed rows
==================== ======================================================= ====================

The last two are risks of the probe's own verdicts, on the inputs that the expert never sees. The risk among the inputs
that a rule keeps is the selective risk of Geifman and El-Yaniv (arXiv 1705.08500), who bound it by the same binomial
tail. All others are risks of the cascade, on the inputs that the expert answers.

If a coin gave labels to a share of the rows only, every metric but ``auroc_error`` takes the betting test of
:meth:`Risk._few_labels_p`.

A rate among some of the rows is tested on these rows alone: given their number, their losses are independent with that
rate. AUROC is not a mean of independent losses. Hoeffding (1963, section 5) reduces a two-sample U-statistic to the
mean of m = min(unsafe, safe) independent losses by convexity, which covers both the KL and the Bentkus bound. DeLong's
and bootstrap intervals are approximations and fail up to seven times as often as stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.pvalues import betting_p, binomial_p, hoeffding_bentkus_p, smallest_level
from calibrate.risk.rows import Rows, Setting
from ctd_guardrail._typing import BoolArray, FloatArray
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.selection import auroc_error

__all__ = ["LOG_LOSS_CAP", "Metric", "Risk", "losses", "risk_value"]

LOG_LOSS_CAP: Final = 7.0
"""Cut of the log loss, at P = .0009. An unbounded loss has no finite-sample guarantee."""


class Metric(StrEnum):
    """Name of a risk. The table at the top of this module defines each."""

    ERROR = "error"
    FNR = "fnr"
    FPR = "fpr"
    ABSTAINED = "abstained"
    BRIER = "brier"
    LOG_LOSS = "log_loss"
    AUROC_ERROR = "auroc_error"
    PROBE_ERROR = "probe_error"
    PROBE_FALSE_OMISSION = "probe_false_omission"


_COUNTED: Final = frozenset(
    {Metric.ERROR, Metric.FNR, Metric.FPR, Metric.ABSTAINED, Metric.PROBE_ERROR, Metric.PROBE_FALSE_OMISSION}
)


@dataclass(frozen=True, slots=True)
class Risk:
    """A risk that must stay below a bound: ``{metric: fnr, max: 0.1}``.

    Attributes:
        metric: Name of the risk.
        max: Upper bound, in the metric's own unit.

    Raises:
        ConfigError: The bound is not between 0 and the largest possible loss.
    """

    metric: Metric
    max: float

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 0.0 < self.max < self.scale:
            raise ConfigError(
                f"{self.metric.value} of at most {self.max!r} is not a bound between 0 and {self.scale:g}",
                key="risk.max",
                hint="Choose a bound between them",
            )

    @property
    def scale(self) -> float:
        """The largest loss of one row."""
        return LOG_LOSS_CAP if self.metric is Metric.LOG_LOSS else 1.0

    def p_value(self, rows: Rows, setting: Setting, *, delta: float) -> float:
        """Return the p-value of "the risk at this setting is above ``max``".

        Args:
            rows: Independent rows that the setting was not chosen on.
            setting: Setting of the cascade.
            delta: Error probability that the betting bound is tuned for.
        """
        return self._p_at(self.max / self.scale, rows, setting, delta)

    def upper_bound(self, rows: Rows, setting: Setting, *, delta: float) -> float:
        """Return the smallest ``max`` that these rows would certify for this one setting at delta."""
        return self.scale * smallest_level(lambda level: self._p_at(level, rows, setting, delta), delta)

    def _p_at(self, level: float, rows: Rows, setting: Setting, delta: float) -> float:
        if self.metric is Metric.AUROC_ERROR:
            label = rows.label[rows.is_answered & rows.is_labelled]
            pairs = int(min(label.sum(), label.size - label.sum()))
            if not pairs:
                return 1.0
            return hoeffding_bentkus_p(risk_value(Metric.AUROC_ERROR, rows, setting) * pairs, pairs, level)
        if rows.label_share < 1.0:
            return self._few_labels_p(level, rows, setting, delta)
        counted = losses(self.metric, rows, setting)
        if self.metric in _COUNTED:
            return binomial_p(int(counted.sum()), counted.size, level)
        return betting_p(counted / self.scale, level, delta=delta)

    def _few_labels_p(self, level: float, rows: Rows, setting: Setting, delta: float) -> float:
        """Return the p-value from rows of which a coin labelled a share.

        "The risk is above the level" is E f >= 0 with f = (loss - level) where the row counts, else 0, in
        [-level, 1 - level]. F, the mean of f under the expert's P(unsafe), stands in for f. A labelled row corrects it,

            z = F + (1{labelled} / share) (f - F),    E z = E f    whatever the expert is,

        because the coin is independent of the row (prediction-powered inference: Angelopoulos et al., arXiv 2301.09633;
        Zrnic and Candes, arXiv 2403.03208). z is bounded, so the betting test is exact in finite samples.
        """
        at = []
        for label in (0.0, 1.0):
            value, counts = _outcome(self.metric, rows, np.full(len(rows), label), setting)
            at.append(np.where(counts, value / self.scale - level, 0.0))
        guess = np.where(rows.is_answered, rows.expert, rows.probe)
        expected = (1.0 - guess) * at[0] + guess * at[1]
        correction = np.where(rows.label == 1.0, at[1], at[0]) - expected
        z = expected + np.where(rows.is_labelled, correction / rows.label_share, 0.0)
        low, width = 1.0 - level - 1.0 / rows.label_share, 2.0 / rows.label_share - 1.0
        return betting_p(np.clip((z - low) / width, 0.0, 1.0), -low / width, delta=delta)


def risk_value(metric: Metric, rows: Rows, setting: Setting) -> float:
    """Return the empirical risk at a setting; NaN if no row counts.

    Raises:
        DataError: AUROC is asked for and the rows are all safe or all unsafe.
    """
    if metric is Metric.AUROC_ERROR:
        known = rows.is_answered & rows.is_labelled
        return auroc_error(rows.score(setting)[known], rows.label[known])
    counted = losses(metric, rows, setting)
    return float(counted.mean()) if counted.size else math.nan


def losses(metric: Metric, rows: Rows, setting: Setting) -> FloatArray:
    """Return the losses of the rows that count, in the metric's own unit, shape [rows that count].

    Args:
        metric: Any but ``auroc_error``, which is a mean over pairs.
        rows: Labelled rows.
        setting: Setting of the cascade.

    Raises:
        ConfigError: The metric has no loss of one row.
    """
    value, counts = _outcome(metric, rows, rows.label, setting)
    return np.asarray(value[counts & rows.is_labelled], dtype=np.float64)


def _outcome(metric: Metric, rows: Rows, label: FloatArray, setting: Setting) -> tuple[FloatArray, BoolArray]:
    """Return the loss of each row under a label, and whether the row counts, both of shape [n]."""
    score = rows.score(setting)
    undecided = np.abs(score - setting.tau) < setting.band
    unsafe = label == 1.0
    blocked = (score >= setting.tau) & ~undecided
    allowed = (score < setting.tau) & ~undecided
    wrong = (allowed & unsafe) | (blocked & ~unsafe)
    answered, kept = rows.is_answered, ~rows.delegated(setting)
    value: NDArray[np.generic]
    match metric:
        case Metric.ERROR:
            value, counted = wrong, answered & ~undecided
        case Metric.FNR:
            value, counted = allowed, answered & unsafe
        case Metric.FPR:
            value, counted = blocked, answered & ~unsafe
        case Metric.ABSTAINED:
            value, counted = undecided, answered
        case Metric.PROBE_ERROR:
            value, counted = wrong, kept & ~undecided
        case Metric.PROBE_FALSE_OMISSION:
            value, counted = unsafe, kept & allowed
        case Metric.BRIER:
            value, counted = np.square(score - label), answered
        case Metric.LOG_LOSS:
            given = np.where(unsafe, score, 1.0 - score)
            # The inner cut avoids ln 0. The outer cut is exact, although exp and ln round.
            value = np.minimum(-np.log(np.maximum(given, math.exp(-2 * LOG_LOSS_CAP))), LOG_LOSS_CAP)
            counted = answered
        case Metric.AUROC_ERROR:
            raise ConfigError("AUROC has no loss of one row", key="risk.metric", hint="Name another metric")
    return np.asarray(value, dtype=np.float64), counted
