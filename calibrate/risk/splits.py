"""Splits of the rows, and checks that their parts are disjoint.

Three mistakes void every guarantee. Calibration rows trained a probe. The order of the tests was learnt on the tested
rows. Dependent rows are counted as independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ctd_guardrail._typing import IndexArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["Split", "one_per_cluster", "random_split", "require_disjoint"]


@dataclass(frozen=True, slots=True)
class Split:
    """Row indices for the choice of candidates and for their tests.

    Attributes:
        optimisation: Rows that give the candidates, their order and their grid.
        testing: Rows that give the p-values.

    Raises:
        DataError: A row is in both, or one part is empty.
    """

    optimisation: IndexArray
    testing: IndexArray

    def __post_init__(self) -> None:
        """Check that the parts are disjoint and not empty."""
        require_disjoint(optimisation=self.optimisation.tolist(), testing=self.testing.tolist())
        if not self.optimisation.size or not self.testing.size:
            raise DataError("a split into optimisation and testing rows needs rows in both", hint="Give more rows")


def random_split(n: int, *, share: float = 0.3, seed: int = 0) -> Split:
    """Split n rows at random.

    Args:
        n: Number of rows, at least 2.
        share: Share of the optimisation rows; the paper uses .3.
        seed: Seed of the split.

    Raises:
        DataError: There are fewer than two rows.
    """
    check_share("share", share)
    order = np.random.default_rng(seed).permutation(n)
    cut = min(n - 1, max(1, round(share * n)))
    return Split(order[:cut], order[cut:])


def one_per_cluster(clusters: Sequence[Hashable], *, seed: int = 0) -> IndexArray:
    """Return the indices of one random row from each cluster, ascending.

    Scores of turns of one conversation, and of near-duplicates, are dependent. Counted as independent rows, they give
    the certificate an n that it does not have.

    Args:
        clusters: Cluster of each row, length n.
        seed: Seed of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(clusters))
    chosen: dict[Hashable, int] = {}
    for index in order.tolist():
        chosen.setdefault(clusters[index], index)
    return np.sort(np.fromiter(chosen.values(), dtype=np.intp, count=len(chosen)))


def require_disjoint(**parts: Iterable[Hashable]) -> None:
    """Refuse parts that share a row.

    Args:
        parts: Row ids of each part, by its name.

    Raises:
        DataError: An id is in two parts; both are named.
    """
    owner: dict[Hashable, str] = {}
    for name, ids in parts.items():
        for row in ids:
            if owner.setdefault(row, name) != name:
                raise DataError(
                    f"row {row!r} is in the {owner[row]} rows and in the {name} rows",
                    hint="A guarantee needs rows that nothing was fitted or chosen on",
                )
