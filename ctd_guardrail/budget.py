"""The certificate of a budget, for any cascade with a score: a router, a reranker, a human in the loop.

It needs no model, only numbers: scores of past inputs, a budget alpha, and an error probability delta. alpha is the
largest share of inputs that may go to the expert. All names below are public; docs/budget.md explains them.

Example:
    >>> import numpy as np
    >>> from ctd_guardrail.budget import certify
    >>> scores = np.random.default_rng(0).random(1000)
    >>> certificate = certify(scores, alpha=0.1, delta=0.05)
    >>> certificate.k, float((scores > certificate.threshold).mean())
    (84, 0.084)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike

from ctd_guardrail.policy.budget import (
    BudgetUnit,
    Certificate,
    Guarantee,
    Method,
    Status,
    TurnScores,
    max_exceedances,
    min_alpha,
    min_rows,
    sort_scores,
)
from ctd_guardrail.policy.budget import certify as _certify
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy

__all__ = [
    "BudgetUnit",
    "CalibrationScores",
    "Certificate",
    "Choice",
    "Costs",
    "Criterion",
    "Guarantee",
    "Method",
    "Policy",
    "Status",
    "TurnScores",
    "best_threshold",
    "certify",
    "max_exceedances",
    "min_alpha",
    "min_rows",
    "read_policy",
]


def certify(
    scores: ArrayLike | TurnScores,
    alpha: float,
    delta: float,
    *,
    conversation: Iterable[Hashable] | None = None,
    unit: BudgetUnit = BudgetUnit.TURN,
    guarantee: Guarantee = Guarantee.EXACT,
    horizon: int | None = None,
    max_turns: int | None = None,
) -> Certificate:
    """Return the smallest threshold whose share of inputs above it is certified to be at most alpha.

    The rule is "delegate if the score is above the threshold", strictly. The scores must come from inputs like those
    of the deployment, and the score must not have been trained on these inputs.

    Args:
        scores: One finite number for each past input, in any order, shape [n]; or the scores of a policy.
        alpha: Largest share of the inputs that the expert may see, in (0, 1); for ``BudgetUnit.CONVERSATION`` the
            mean number of calls per conversation.
        delta: Admissible probability, over the draw of the past inputs, that the share is larger; in (0, 1).
        conversation: An identifier for each input, equal for the turns of one conversation. None: the inputs are
            independent of each other.
        unit: What alpha is a share or a number of.
        guarantee: What alpha bounds; docs/guarantees.md says which one to choose.
        horizon: For ``Guarantee.NEXT``: the number of inputs that the statement covers.
        max_turns: Largest number of turns of a future conversation; None: that of the past ones.

    Returns:
        The certificate. Its status is ``Status.INFEASIBLE``, and its threshold infinite, if there are too few scores.

    Raises:
        DataError: There are no scores, or one is not a finite number.
        ConfigError: alpha or delta lies outside its range, or the other arguments do not belong together.
    """
    if not isinstance(scores, TurnScores):
        column = np.asarray(scores, dtype=np.float64)
        sort_scores(column)  # for its checks
        scores = TurnScores.of(column, conversation)
    return _certify(scores, alpha, delta, unit=unit, guarantee=guarantee, horizon=horizon, max_turns=max_turns)
