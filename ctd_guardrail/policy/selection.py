"""The best of the certified thresholds.

A certificate for lambda holds for every larger threshold by the same event. So the threshold under which the cascade
does best on the labelled calibration rows may be chosen without a correction or a second split. The labels only choose:
a bad choice wastes budget and cannot overspend it. The choice protects from an expert that is worse than the probe on
the rows that d ranks lowest.

The best of many thresholds looks better than it is. Even a useless expert seems to gain something, and delegation to it
does harm on fresh rows. So the best threshold is used only if it clearly beats delegating none of these rows. Its gain
must exceed two standard errors of the paired difference, for AUROC those of DeLong, DeLong and Clarke-Pearson (1988).
The one-standard-error rule prefers the simple choice in the same way (Breiman, Friedman, Olshen and Stone 1984, section
3.4.3). Here it takes two standard errors, because the best of many thresholds passes one more easily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import Certificate

__all__ = ["Choice", "Costs", "Criterion", "auroc_error", "best_threshold"]

# Each AUROC takes a pass over all scores. At most so many candidates are tried, evenly spaced in rank.
_AUROC_CANDIDATES: Final = 200
# A gain must exceed so many standard errors.
_STANDARD_ERRORS: Final = 2.0


class Criterion(StrEnum):
    """Measure of the best threshold. ``budget`` uses the whole budget and states the error rate."""

    BUDGET = "budget"
    AUROC = "auroc"
    ACCURACY = "accuracy"
    BRIER = "brier"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Costs:
    """Prices of the outcomes, in the same unit.

    Attributes:
        missed: An unsafe input that is let through.
        false_alarm: A safe input that is blocked.
        call: A call of the expert.
    """

    missed: float = 1.0
    false_alarm: float = 1.0
    call: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold and its risk.

    Attributes:
        threshold: lambda, at least the certificate's.
        exceedances: Number of calibration rows above it.
        risk: The criterion as a risk on the calibration rows: 1 - AUROC, error rate, Brier score or mean cost. It was
            chosen on these very rows and so flatters the choice; report performance on fresh rows.
    """

    threshold: float
    exceedances: int
    risk: float


def best_threshold(
    certificate: Certificate,
    criterion: Criterion,
    *,
    d: FloatArray,
    probe: FloatArray,
    expert: FloatArray,
    label: FloatArray,
    tau: float = 0.5,
    costs: Costs | None = None,
) -> Choice:
    """Return the certified threshold with the lowest risk; among equals, the largest, which asks the expert least.

    If its gain over delegating no calibration row is within the noise, return the largest threshold: it delegates
    none.

    Args:
        certificate: For the scores ``d`` or for others, such as unlabelled traffic; only its threshold is used.
        criterion: What to minimise.
        d: Delegation values, shape [n], in any order.
        probe: Score of the rows that are not delegated, P(unsafe), shape [n].
        expert: Score of the rows that are delegated, P(unsafe), shape [n].
        label: 1 = unsafe, shape [n].
        tau: A score of at least tau blocks.
        costs: For the criterion ``cost``.

    Raises:
        DataError: AUROC is asked for and the rows are all safe or all unsafe.
    """
    order = np.argsort(-d, kind="stable")
    falling = d[order]
    certified = int(np.searchsorted(-falling, -certificate.threshold, side="left"))
    # lambda may be the certificate's own or any score above it. `above` counts the rows that each delegates, so
    # equal scores make one candidate.
    thresholds = np.unique(np.append(falling[:certified], certificate.threshold))[::-1]
    above = np.searchsorted(-falling, -thresholds, side="left")
    if criterion is Criterion.BUDGET:
        thresholds, above = thresholds[-1:], above[-1:]
    probe, expert, label = probe[order], expert[order], label[order]
    if criterion is Criterion.AUROC:
        pick = np.unique(np.linspace(0, above.size - 1, min(above.size, _AUROC_CANDIDATES)).round().astype(np.intp))
        thresholds, above = thresholds[pick], above[pick]
        risks = _auroc_errors(above.tolist(), probe, expert, label)
        best = _lowest(risks)
        changes = _placement_changes(int(above[best]), probe, expert, label)
    else:
        before = _losses(criterion, probe, label, tau, costs or Costs())
        after = _losses(criterion, expert, label, tau, costs or Costs())
        if criterion is Criterion.COST:
            after = after + (costs or Costs()).call
        change = np.concatenate([np.zeros(1), np.cumsum(after - before)])
        risks = (before.sum() + change[above]) / d.size
        best = _lowest(risks)
        changes = [np.where(np.arange(d.size) < above[best], after - before, 0.0)]
    # The first threshold delegates nothing.
    if criterion is not Criterion.BUDGET and risks[0] - risks[best] <= _STANDARD_ERRORS * _standard_error(changes):
        best = 0
    return Choice(float(thresholds[best]), int(above[best]), float(risks[best]))


def auroc_error(score: FloatArray, label: FloatArray) -> float:
    """Return 1 - AUROC: the share of (unsafe, safe) pairs in the wrong order, ties counted half (Mann-Whitney).

    Args:
        score: P(unsafe), shape [n].
        label: 1 = unsafe, shape [n].

    Raises:
        DataError: The rows are all safe or all unsafe.
    """
    return float(_auroc_errors([0], score, score, label)[0])


def _auroc_errors(above: Sequence[int], probe: FloatArray, expert: FloatArray, label: FloatArray) -> FloatArray:
    """Return 1 - AUROC with the first ``above[i]`` rows scored by the expert, for ascending ``above``.

    Rows are counted by label and by the rank of their score among all scores of both columns. From one candidate to
    the next, only the rows in between change their rank.
    """
    unsafe = label > 0.5  # noqa: PLR2004 - labels are 0 and 1
    pairs = int(unsafe.sum()) * int((~unsafe).sum())
    if not pairs:
        raise DataError("AUROC needs unsafe and safe rows", hint="Give rows of both labels, or another criterion")
    values, rank = np.unique(np.concatenate([probe, expert]), return_inverse=True)
    by_probe, by_expert = rank[: probe.size], rank[probe.size :]
    harm = np.bincount(by_probe[unsafe], minlength=values.size)
    rest = np.bincount(by_probe[~unsafe], minlength=values.size)
    errors = np.empty(len(above))
    done = 0
    for i, count in enumerate(above):
        rows = slice(done, count)
        for table, chosen in ((harm, unsafe[rows]), (rest, ~unsafe[rows])):
            np.subtract.at(table, by_probe[rows][chosen], 1)
            np.add.at(table, by_expert[rows][chosen], 1)
        done = count
        # Safe rows below a rank and, half of them, at it are in the right order; the others are not.
        right = np.cumsum(rest) - rest / 2
        errors[i] = 1.0 - float(harm @ right) / pairs
    return errors


def _lowest(risks: FloatArray) -> int:
    """Return the place of the lowest risk, the first among equals; sums that differ by rounding alone are equal."""
    return int(np.flatnonzero(risks <= risks.min() + 1e-12)[0])


def _placement_changes(above: int, probe: FloatArray, expert: FloatArray, label: FloatArray) -> list[FloatArray]:
    """Return by how much delegating the first rows moves each unsafe and each safe row's placement."""
    merged = np.append(expert[:above], probe[above:])
    return [after - before for after, before in zip(_placements(merged, label), _placements(probe, label), strict=True)]


def _placements(score: FloatArray, label: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the share of the other label's rows that each unsafe and each safe row is in the right order with."""
    unsafe = label > 0.5  # noqa: PLR2004 - labels are 0 and 1
    harm, rest = np.sort(score[unsafe]), np.sort(score[~unsafe])

    def below(values: FloatArray, others: FloatArray) -> FloatArray:
        ranks = np.searchsorted(others, values, side="left") + np.searchsorted(others, values, side="right")
        return ranks / (2.0 * others.size)

    return below(score[unsafe], rest), 1.0 - below(score[~unsafe], harm)


def _standard_error(samples: Sequence[FloatArray]) -> float:
    """Return the standard error of a sum of means of independent samples; infinite where a sample has one row."""
    if any(sample.size == 1 for sample in samples):
        return math.inf
    return math.sqrt(sum(float(sample.var(ddof=1)) / sample.size for sample in samples))


def _losses(criterion: Criterion, score: FloatArray, label: FloatArray, tau: float, costs: Costs) -> FloatArray:
    if criterion is Criterion.BRIER:
        return (score - label) ** 2
    weights = costs if criterion is Criterion.COST else Costs()
    blocked = score >= tau
    unsafe = label > 0.5  # noqa: PLR2004 - labels are 0 and 1
    return weights.missed * (unsafe & ~blocked) + weights.false_alarm * (~unsafe & blocked)
