"""Test rows with the scores of probes and expert."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.merge import Merge

__all__ = ["ScoredRows"]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Test rows with the scores of the probes, as the rail computes them, and of the expert.

    Attributes:
        p: Safety probe, P(unsafe), shape [n].
        d: Delegation value, shape [n].
        expert: Expert, P(unsafe), shape [n].
        label: 1 = unsafe, 0 = safe, shape [n].
        group: Name of each row's group; None if the rows have no groups.
        cluster: Rows with one number depend on each other, shape [n]; None if all rows are independent.
        name: Place of each row in the data, ``FILE:LINE``; None if unknown.
        merge: How p and e become the cascade's score of a delegated row.
    """

    p: FloatArray
    d: FloatArray
    expert: FloatArray
    label: FloatArray
    group: list[str] | None = None
    cluster: IntArray | None = None
    name: list[str] | None = None
    merge: Merge = field(default_factory=Merge)

    @property
    def merged(self) -> FloatArray:
        """The cascade's score m of a row that is delegated, shape [n]. Without a merge it is e."""
        return self.merge(self.p, self.expert)

    @property
    def value(self) -> FloatArray:
        """True delegation value v = (2y - 1)(m - p), shape [n]."""
        value: FloatArray = (2.0 * self.label - 1.0) * (self.merged - self.p)
        return value

    @property
    def clusters(self) -> IntArray:
        """Number of each row's cluster, shape [n]."""
        return np.arange(self.label.size) if self.cluster is None else self.cluster

    def cascade_score(self, delegated: BoolArray) -> FloatArray:
        """Return the cascade's score when these rows go to the expert, shape [n]."""
        score: FloatArray = np.where(delegated, self.merged, self.p)
        return score

    def check(self) -> None:
        """Check the rows.

        Raises:
            DataError: The columns differ in length, or hold values that are not finite.
        """
        columns = {"p": self.p, "d": self.d, "expert": self.expert, "label": self.label}
        if self.cluster is not None:
            columns["cluster"] = self.cluster.astype(np.float64)
        for name, column in columns.items():
            if column.shape != self.label.shape or column.ndim != 1:
                raise DataError(f"test column {name} has shape {column.shape} beside {self.label.size} labels")
            if not np.isfinite(column).all():
                raise DataError(f"test column {name} holds values that are not finite")
        for noun, names in (("groups", self.group), ("names", self.name)):
            if names is not None and len(names) != self.label.size:
                raise DataError(f"{len(names)} {noun} stand beside {self.label.size} test labels")
