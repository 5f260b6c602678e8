"""The score of a delegated input, from the probe's p and the expert's e."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit, logit

from ctd_guardrail._typing import FloatArray

__all__ = ["Merge", "log_odds"]

# Experts give scores of 0 and 1, and log-odds must be finite.
_SURE: Final = 1e-6

_Number = Annotated[float, Field(allow_inf_nan=False)]


class Merge(BaseModel):
    """Merge of p and e to one score. The verdict compares it with the decision threshold.

    The delegated inputs do not depend on the merge, so the certificate of the budget does not either.

    Attributes:
        kind: ``replace``: e alone, as in arXiv 2604.14251. ``average``: (1 - weight) p + weight e. ``stacking``:
            logistic in the log-odds of both.
        weight: Share of e in ``average``.
        intercept: Of ``stacking``.
        probe: Coefficient of logit p in ``stacking``.
        expert: Coefficient of logit e in ``stacking``.
        expert_scale: (a, b) of Platt scaling, e := sigmoid(a logit e + b), before the merge; None: e is not scaled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["replace", "average", "stacking"] = "replace"
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    intercept: _Number = 0.0
    probe: _Number = 0.5
    expert: _Number = 0.5
    expert_scale: tuple[_Number, _Number] | None = None

    def __call__(self, p: ArrayLike, e: ArrayLike) -> FloatArray:
        """Return P(unsafe) of delegated inputs.

        Args:
            p: Safety probe, P(unsafe).
            e: Expert, P(unsafe), of the same shape.

        Returns:
            The shape of ``p``.
        """
        p, e = np.asarray(p, dtype=np.float64), np.asarray(e, dtype=np.float64)
        if self.expert_scale is not None:
            slope, offset = self.expert_scale
            e = expit(slope * log_odds(e) + offset)
        match self.kind:
            case "replace":
                return e
            case "average":
                return (1.0 - self.weight) * p + self.weight * e
            case "stacking":
                merged: FloatArray = expit(self.intercept + self.probe * log_odds(p) + self.expert * log_odds(e))
                return merged


def log_odds(probability: FloatArray) -> FloatArray:
    """Return the logit, which is finite for probabilities of 0 and 1 too."""
    odds: FloatArray = logit(np.clip(probability, _SURE, 1.0 - _SURE))
    return odds
