"""The methods that find a certified threshold, each for its guarantee and its unit.

================= ================================== =========================================
guarantee         one turn in each conversation      several turns
================= ================================== =========================================
exact             closed form                        betting on whole conversations
simultaneous      closed form                        thinning to independent turns, closed form
expected          closed form                        conformal risk control
next              closed form                        none
================= ================================== =========================================

Calls per conversation are certified by betting under ``exact`` and by conformal risk control under ``expected``. Which
method is used depends on the lengths of the conversations, never on the scores.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final, NamedTuple

from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.betting import Bets
from ctd_guardrail.policy.envelope import ALPHA_HIGH, Simultaneous
from ctd_guardrail.policy.guarantees import Rule, largest_count
from ctd_guardrail.policy.thinning import thin
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["Found", "Method", "by_betting", "by_closed_form", "by_conformal_control", "by_thinning"]

_LARGEST_SHARE: Final = 1.0 - 1e-9
_ALPHA_STEP: Final = 1e-6


class Method(StrEnum):
    """How the threshold was found.

    ``exact binomial``: closed form for conversations of one turn. ``thinning``: the closed form on one random turn of
    a random part of the conversations. ``betting``: a sequential test on whole conversations. ``conformal``: conformal
    risk control.
    """

    EXACT_BINOMIAL = "exact binomial"
    THINNING = "thinning"
    BETTING = "betting"
    CONFORMAL = "conformal"


class Found(NamedTuple):
    """A certified threshold.

    Attributes:
        threshold: lambda; ``+inf`` if there is none.
        k: Number of scores above it, or the number that may lie above it.
        n_min: Smallest number of conversations that can certify alpha.
        alpha_min: Smallest alpha that these conversations can certify.
        method: How it was found.
        mean_rate: Expected share of delegated turns, if its law is known; None: the rate on the data stands for it.
    """

    threshold: float
    k: int
    n_min: int
    alpha_min: float
    method: Method
    mean_rate: float | None = None


def by_closed_form(scores: TurnScores, rule: Rule, alpha: float) -> Found:
    """Certify independent turns: at most so many of them may lie above lambda."""
    n, always = scores.turns, scores.always
    k = rule.exceedances(n, alpha)
    threshold = float(scores.d[n - 1 - k]) if k >= always else math.inf
    alpha_min = rule.budget(n) if not always else _alpha_for(rule, n, always)
    return Found(threshold, k, rule.rows(n, alpha), alpha_min, Method.EXACT_BINOMIAL, (k + 1) / (n + 1))


def by_thinning(scores: TurnScores, rule: Rule, alpha: float, max_turns: int) -> Found:
    """Certify an independent sample of turns, one of each conversation that is kept.

    Raises:
        DataError: No conversation was kept.
    """
    sample = thin(scores, max_turns)
    if not sample.turns:
        raise DataError(
            f"thinning to conversations of up to {max_turns} turns leaves none", hint="Give more conversations"
        )
    found = by_closed_form(sample, rule, alpha)
    return Found(
        found.threshold,
        scores.count_above(found.threshold),
        math.ceil(found.n_min * scores.conversations / sample.turns),
        found.alpha_min,
        Method.THINNING,
    )


def by_betting(
    scores: TurnScores, alpha: float, delta: float, *, unit: BudgetUnit, max_turns: int, first_look: int | None
) -> Found:
    """Certify whole conversations; see :mod:`ctd_guardrail.policy.betting`."""
    bets = Bets(scores, delta, unit=unit, max_turns=max_turns, first_look=first_look)
    threshold = bets.threshold(alpha)
    return Found(
        threshold,
        scores.count_above(threshold),
        bets.min_conversations(alpha),
        bets.min_alpha(),
        Method.BETTING,
    )


def by_conformal_control(scores: TurnScores, alpha: float, *, unit: BudgetUnit, max_turns: int) -> Found:
    """Certify the mean over calibrations: E[D - a] <= 0 for the next conversation, D calls against an allowance a.

    Conformal risk control (arXiv 2208.02814) of the loss D - a, which falls with lambda and is at most Tmax calls minus
    the allowance of Tmax turns: sum_i (D_i - a_i) + max(D - a) <= 0 over the conversations at hand.
    """
    # a = alpha T: k + Tmax <= alpha (turns + Tmax). a = alpha: k + Tmax <= alpha (conversations + 1).
    per_turn = unit is BudgetUnit.TURN
    total = scores.turns + max_turns if per_turn else scores.conversations + 1
    k = largest_count(total, alpha, most=scores.turns + max_turns) - max_turns
    always = scores.always
    threshold = float(scores.d[max(scores.turns - 1 - k, 0)]) if k >= always else math.inf
    mean_turns = scores.turns / scores.conversations
    needed = max_turns * (1.0 - alpha) / (alpha * mean_turns) if per_turn else max_turns / alpha - 1.0
    return Found(
        threshold,
        scores.count_above(threshold),
        max(1, math.ceil(needed)),
        (always + max_turns) / total,
        Method.CONFORMAL,
    )


def _alpha_for(rule: Rule, n: int, k: int) -> float:
    """Return an alpha that allows k of n scores above the threshold, close to the smallest; 1 if there is none."""
    low, high = rule.budget(n), ALPHA_HIGH if isinstance(rule, Simultaneous) else _LARGEST_SHARE
    if rule.exceedances(n, high) < k:
        return 1.0
    while high - low > _ALPHA_STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if rule.exceedances(n, middle) >= k else (middle, high)
    return high
