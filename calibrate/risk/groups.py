"""A budget for each group (Mondrian calibration; Vovk, Gammerman and Shafer 2005, section 4.5).

The pooled threshold bounds the rate over the mixture and nothing else: one group may be delegated four times as often
as another. A threshold for each group, from the group's own rows, bounds every group's rate at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import Certificate, certify, sort_scores
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["certify_groups"]

FloatArray = NDArray[np.float64]
Group = TypeVar("Group", bound=Hashable)


def certify_groups(scores: FloatArray, groups: Sequence[Group], alpha: float, delta: float) -> dict[Group, Certificate]:
    """Return a certificate for each group, all of which hold together with probability at least 1 - delta.

    Each of the G groups is certified at delta / G. The group of an input must be known when it is screened, and
    groups must be fixed before looking at the scores.

    Args:
        scores: Delegation values, shape [n].
        groups: Group of each row, length n.
        alpha: Budget of each group, in (0, 1).
        delta: Error probability for all groups together, in (0, 1).

    Raises:
        DataError: The columns differ in length, or a score is NaN or infinite; its row is named.
    """
    check_share("delta", delta)
    if len(groups) != scores.size:
        raise DataError(f"there are {len(groups)} groups for {scores.size} delegation values")
    sort_scores(scores)  # for its checks, while row numbers mean rows of the whole column
    rows: dict[Group, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {group: certify(np.sort(scores[index]), alpha, delta / len(rows)) for group, index in rows.items()}
