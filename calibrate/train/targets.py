"""What the heads have to learn, for each way to predict the delegation value.

v = (2y - 1)(m - p) is what an input gains where the cascade's score with the expert, m, replaces the probe's
(arXiv 2604.14251, section 3; there m is the expert's score itself).

- ``plug_in``: p is known wherever v is predicted. Besides eta = P(y=1|x), only e1 = E[m | x, y=1] and
  e0 = E[m | x, y=0] are unknown; each is a regression on the rows of its label.
- ``direct``: v itself is regressed, as the paper does. p and m have to be out of sample.
- ``binary``: 1[probe wrong and expert right], which never says that the expert would do harm; for comparison.

Costs weigh the gains of unsafe and of safe rows; the larger cost counts 1, so d stays in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from calibrate.config.training import Delegation
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.spec import DelegationCosts

__all__ = ["Target", "delegation_targets", "label_target", "share_target"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Fewer examples of a class are noise to a logistic regression with five folds.
_FEWEST_ROWS: Final = 10
# Scores of at least this much block.
_TAU: Final = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """What one head is to say.

    Attributes:
        loss: ``logistic``: the head is the logit of a probability. ``squared``: it is the value itself.
        values: Labels, or values, shape [rows].
        weights: What each row counts; rows of weight 0 have no part, shape [rows].
    """

    loss: Literal["logistic", "squared"]
    values: FloatArray
    weights: FloatArray

    @property
    def rows(self) -> IntArray:
        """The rows that have a part."""
        return np.flatnonzero(self.weights > 0.0)

    def take(self, rows: IntArray) -> Target:
        """Return the target of some of the rows, in this order."""
        return Target(self.loss, self.values[rows], self.weights[rows])


def label_target(labels: FloatArray) -> Target:
    """Return the target of the safety probe, and one of eta: the logit of P(y=1|x)."""
    return Target("logistic", labels, np.ones_like(labels))


def share_target(labels: FloatArray) -> Target:
    """Return the other target of a linear eta: P(y=1|x) itself, up to a scale."""
    return Target("squared", labels, np.ones_like(labels))


def delegation_targets(
    kind: Delegation, labels: FloatArray, p: FloatArray, merged: FloatArray, costs: DelegationCosts
) -> dict[str, Target]:
    """Return the targets of all delegation heads but eta.

    Args:
        kind: How d is predicted.
        labels: 1 = unsafe, 0 = safe, shape [rows].
        p: The safety probe out of sample, shape [rows].
        merged: The cascade's score where the expert is asked, shape [rows].
        costs: Of a missed unsafe row and of a false alarm.

    Raises:
        DataError: ``binary``, and the expert corrects the probe on too few rows, or on nearly all.
    """
    unsafe = labels == 1
    if kind == "plug_in":
        # Costs come in where the heads are put together.
        return {
            "e1": Target("squared", merged, unsafe.astype(np.float64)),
            "e0": Target("squared", merged, (~unsafe).astype(np.float64)),
        }
    weights = np.where(unsafe, *costs.relative)
    if kind == "direct":
        value = weights * (2.0 * labels - 1.0) * (merged - p)
        return {"value": Target("squared", value, np.ones_like(labels))}
    corrected = ((p >= _TAU) != unsafe) & ((merged >= _TAU) == unsafe)
    if not _FEWEST_ROWS <= corrected.sum() <= corrected.size - _FEWEST_ROWS:
        raise DataError(
            f"the expert corrects the probe on {corrected.sum()} of {corrected.size} training rows, "
            f"and binary delegation needs {_FEWEST_ROWS} of either kind",
            hint="Set probes.delegation: plug_in",
        )
    return {"value": Target("logistic", corrected.astype(np.float64), weights)}
