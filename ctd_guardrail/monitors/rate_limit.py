"""The rate that the rate alarm tests against, and the calibration turns that the score alarms compare with."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from scipy.special import betainccinv

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.betting import Bets
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["LimitKind", "RateLimit", "rate_bound", "reference_scores"]

# Bounds are tried at these multiples of alpha, each with its part of delta.
_STEPS: Final = (1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


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
    that of Clopper and Pearson. For others it is the smallest multiple of alpha at which :class:`Bets` certify the
    threshold. The threshold depends on the same conversations, so each multiple is a test with its part of delta.

    Args:
        scores: The turns of the calibration.
        threshold: The certified threshold.
        alpha: The certified budget: calls per unit.
        delta: Probability in (0, 1) that the bound is too low, over the calibration draw.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation.
    """
    most = 1.0 if unit is BudgetUnit.TURN else float(max_turns)
    if max_turns == 1:
        n, k = scores.turns, scores.count_above(threshold)
        return 1.0 if k >= n else float(betainccinv(k + 1, n - k, delta))
    bets = Bets(scores, delta / len(_STEPS), unit=unit, max_turns=max_turns)
    bounds = (step * alpha for step in _STEPS if step * alpha < most)
    return next((bound for bound in bounds if bets.threshold(bound) <= threshold), most)


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
