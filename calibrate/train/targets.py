"""Targets of the heads.

The delegation value predicts v = (2y - 1)(m - p), where m is the cascade's score of a delegated row
(arXiv 2604.14251, section 3; there m is the expert's score). p is known when v is predicted. So the heads learn
eta = P(y=1|x), e1 = E[m | x, y=1] and e0 = E[m | x, y=0], each by a regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray

__all__ = ["Target", "expert_targets", "label_target", "share_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Target of one head.

    Attributes:
        loss: ``logistic``: the head is the logit of a probability. ``squared``: it is the value itself.
        values: Labels, or values, shape [rows].
        weights: Weight of each row, shape [rows]. Rows of weight 0 are not used.
    """

    loss: Literal["logistic", "squared"]
    values: FloatArray
    weights: FloatArray

    @property
    def rows(self) -> IntArray:
        """The rows that are used."""
        return np.flatnonzero(self.weights > 0.0)


def label_target(labels: FloatArray) -> Target:
    """Return the target of a logit of P(y=1|x)."""
    return Target("logistic", labels, np.ones_like(labels))


def share_target(labels: FloatArray) -> Target:
    """Return the target of P(y=1|x) itself."""
    return Target("squared", labels, np.ones_like(labels))


def expert_targets(labels: FloatArray, merged: FloatArray) -> dict[str, Target]:
    """Return the targets of e1 and e0: the score of a delegated row, on the rows of each label.

    Args:
        labels: 1 = unsafe, 0 = safe, shape [rows].
        merged: The cascade's score of each row if it is delegated, shape [rows].
    """
    return {
        "e1": Target("squared", merged, (labels == 1).astype(np.float64)),
        "e0": Target("squared", merged, (labels != 1).astype(np.float64)),
    }
