"""A budget in tokens, money or seconds for each request, instead of a share of calls.

The loss of a request is its cost if it is delegated and 0 if not, divided by the largest cost: bounded, but not 0/1.
A scan from the most conservative threshold down, each tested by betting, certifies the mean. Counting calls and
multiplying by their mean cost overspends wherever costly requests are delegated more often, which is where experts
are asked about long ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.outcome import top_thresholds
from calibrate.risk.pvalues import betting_p
from calibrate.risk.splits import random_split
from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Status, sort_scores
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["CostCertificate", "certify_cost"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CostCertificate:
    """A threshold whose mean cost is certified.

    Attributes:
        status: Whether the budget is certified.
        threshold: lambda; ``+inf`` where infeasible.
        budget: Largest admissible mean cost of a request, delegated or not.
        delta: Admissible probability, over the calibration draw, that the mean cost exceeds it.
        mean_cost: Mean cost of a request on the rows that the threshold was tested on.
        n: Number of these rows.
    """

    status: Status
    threshold: float
    budget: float
    delta: float
    mean_cost: float
    n: int


def certify_cost(
    scores: FloatArray,
    costs: FloatArray,
    *,
    budget: float,
    delta: float,
    largest: float,
    grid_share: float = 0.1,
    candidates: int = 200,
    seed: int = 0,
) -> CostCertificate:
    """Return the smallest threshold whose mean cost is certified to be at most the budget.

    The grid of thresholds comes from a random tenth of the rows and the p-values from the others, so that the tests
    know their order beforehand.

    Args:
        scores: Delegation values of independent rows, shape [n].
        costs: What asking the expert about each row costs, all attempts and retries together, shape [n].
        budget: Largest admissible mean cost of a request, between 0 and ``largest``.
        delta: Error probability in (0, 1).
        largest: The most that one request can cost, a limit that deployment enforces (token limit times attempts).
        grid_share: Share of the rows that the grid is taken from.
        candidates: Number of thresholds to consider.
        seed: Seed of the split and of the order of bets, chosen without looking at the rows.

    Raises:
        ConfigError: The budget is not between 0 and ``largest``, or delta is not in (0, 1).
        DataError: A score is NaN or infinite, or a cost is not in [0, largest]; the row is named.
    """
    check_share("delta", delta)
    if not 0.0 < budget < largest:
        raise ConfigError(f"{budget!r} is not between 0 and the largest cost {largest!r}", key="budget.cost")
    if scores.shape != costs.shape:
        raise DataError(f"there are {costs.size} costs for {scores.size} delegation values")
    sort_scores(scores)  # for its checks
    bad = np.flatnonzero(~((costs >= 0.0) & (costs <= largest)))
    if bad.size:
        raise DataError(
            f"cost is {costs[bad[0]]}, not in [0, {largest}]",
            row=int(bad[0]) + 1,
            hint="Costs above the stated largest void the guarantee: state a larger one, or cut requests there",
        )
    split = random_split(scores.size, share=grid_share, seed=seed)
    thresholds = top_thresholds(scores[split.optimisation], 1.0, candidates)[1:]
    d, share = scores[split.testing], costs[split.testing] / largest
    p_values = [
        betting_p(share * (d > threshold), budget / largest, delta=delta, seed=seed)
        for threshold in thresholds.tolist()
    ]
    passed = int(fixed_sequence(p_values, delta).sum())
    threshold = float(thresholds[passed - 1]) if passed else math.inf
    return CostCertificate(
        status=Status.CERTIFIED if passed else Status.INFEASIBLE,
        threshold=threshold,
        budget=budget,
        delta=delta,
        mean_cost=float((costs[split.testing] * (d > threshold)).mean()),
        n=int(d.size),
    )
