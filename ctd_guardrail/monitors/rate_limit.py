"""The rate that the rate alarm tests against, and the calibration turns that the score alarms compare with."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from scipy.special import betainccinv

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.call_rate import RateBets
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["LimitKind", "RateLimit", "rate_bound", "reference_scores"]

# Bounds are tried at these multiples of alpha, each with its part of delta.
_STEPS: Final = np.concatenate([np.arange(1.05, 2.0, 0.05), np.arange(2.0, 6.0, 0.5)])


class LimitKind(StrEnum):
    """What the rate alarm tests against.

    ``budget``: alpha. ``calibration_bound``: an upper confidence bound on the rate of the threshold.
    """

    BUDGET = "budget"
    CALIBRATION_BOUND = "calibration_bound"


class RateLimit(NamedTuple):
    """The rate that the rate alarm tests against.

    Attributes:
        rate: Calls per unit of the budget.
        kind: Where it comes from.
    """

    rate: float
    kind: LimitKind = LimitKind.BUDGET


def rate_bound(
    scores: TurnScores, threshold: float, alpha: float, delta: float, *, unit: BudgetUnit, max_turns: int
) -> float:
    """Return an upper bound on the rate of a threshold that calibration chose. It fails with probability delta.

    ``guarantee: expected`` bounds the mean rate over calibrations by alpha. The rate itself exceeds alpha in half of
    them, so alpha is no limit for an alarm.

    For conversations of one turn, with k scores above the threshold, the rate is Beta(k + 1, n - k), and the bound is
    that of Clopper and Pearson. For others it is the smallest multiple of alpha that :class:`RateBets` excludes at its
    part of delta: the threshold depends on the same conversations, so each multiple is a test of its own.

    Args:
        scores: The turns of the calibration.
        threshold: The certified threshold.
        alpha: The certified budget: calls per unit.
        delta: Probability in (0, 1) that the bound is too low, over the calibration draw.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation.
    """
    above = scores.d > threshold
    if unit is BudgetUnit.TURN and max_turns == 1:
        n, k = scores.turns, int(above.sum())
        return 1.0 if k >= n else float(betainccinv(k + 1, n - k, delta))
    numbers = np.arange(scores.turns) if scores.conversation is None else scores.conversation
    calls = np.bincount(numbers[above], minlength=scores.conversations)
    units = scores.lengths if unit is BudgetUnit.TURN else np.ones_like(calls)
    bets = RateBets(
        Counter(zip(units.tolist(), calls.tolist(), strict=True)),
        max_units=max_turns if unit is BudgetUnit.TURN else 1,
        max_calls=max_turns,
    )
    most = 1.0 if unit is BudgetUnit.TURN else float(max_turns)
    bound = bets.upper(delta / _STEPS.size)
    return float(min([*(step * alpha for step in _STEPS if step * alpha >= bound), most]))


def reference_scores(scores: TurnScores) -> FloatArray:
    """Return d of one readable turn of each calibration conversation, drawn at random, in ascending order.

    Turns of one conversation depend on each other. One of each conversation makes a sample that is exchangeable with
    one random turn of each conversation of the traffic.

    Raises:
        DataError: No turn is readable.
    """
    readable = np.isfinite(scores.d)
    if scores.conversation is not None:
        order = np.random.default_rng(0).permutation(scores.turns)
        order = order[readable[order]]
        _, first = np.unique(scores.conversation[order], return_index=True)
        chosen = np.sort(scores.d[order[first]])
    else:
        chosen = scores.d[readable]
    if not chosen.size:
        raise DataError("no calibration turn can be read", hint="The alarms on the scores need readable turns")
    return np.asarray(chosen, dtype=np.float64)
