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

import numpy as np
from numpy.typing import ArrayLike

from ctd_guardrail.policy.budget import (
    Certificate,
    Guarantee,
    Status,
    max_exceedances,
    min_alpha,
    min_rows,
    sort_scores,
)
from ctd_guardrail.policy.budget import certify as _certify
from ctd_guardrail.policy.selection import Choice, Costs, Criterion, best_threshold
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy

__all__ = [
    "CalibrationScores",
    "Certificate",
    "Choice",
    "Costs",
    "Criterion",
    "Guarantee",
    "Policy",
    "Status",
    "best_threshold",
    "certify",
    "max_exceedances",
    "min_alpha",
    "min_rows",
    "read_policy",
]


def certify(
    scores: ArrayLike,
    alpha: float,
    delta: float,
    *,
    guarantee: Guarantee = Guarantee.EXACT,
    horizon: int | None = None,
) -> Certificate:
    """Return the smallest threshold whose share of inputs above it is certified to be at most alpha.

    The rule is "delegate if the score is above the threshold", strictly. The scores must come from inputs like those
    of the deployment, and the score must not have been trained on these inputs.

    Args:
        scores: One finite number for each past input, in any order, shape [n].
        alpha: Largest share of the inputs that the expert may see, in (0, 1).
        delta: Admissible probability, over the draw of the past inputs, that the share is larger; in (0, 1).
        guarantee: What alpha bounds; docs/guarantees.md says which one to choose.
        horizon: For ``Guarantee.NEXT``: the number of inputs that the statement covers.

    Returns:
        The certificate. Its status is ``Status.INFEASIBLE``, and its threshold infinite, if there are too few scores.

    Raises:
        DataError: There are no scores, or one is not a finite number.
        ConfigError: alpha or delta lies outside (0, 1), or ``horizon`` and ``guarantee`` do not belong together.
    """
    ordered = sort_scores(np.asarray(scores, dtype=np.float64))
    return _certify(ordered, alpha, delta, guarantee=guarantee, horizon=horizon)
