"""Standardisation to zero mean and unit variance, and its inverse for weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ctd_guardrail._typing import FloatArray

__all__ = ["Standardiser"]


_CONSTANT: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Standardiser:
    """The affine map z = (x - mean) / scale, in float64.

    Some activation dimensions of language models are a thousand times larger than the others. Only after this map does
    a penalty treat the weights of all dimensions alike.

    Attributes:
        mean: Column means, shape [d].
        scale: Column standard deviations, 1 for constant columns, shape [d].
    """

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, features: FloatArray) -> Standardiser:
        """Measure the columns of features, shape [n, d]."""
        mean, scale = features.mean(axis=0), features.std(axis=0)
        # Rounding: the mean of a constant column is not always exactly that constant.
        return cls(mean, np.where(scale > _CONSTANT * np.abs(mean), scale, 1.0))

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return standardised features, shape [n, d]."""
        return (features - self.mean) / self.scale

    def fold(self, weight: FloatArray, bias: float) -> tuple[FloatArray, float]:
        """Return the weights and the bias on x that give the same value as these on z."""
        raw = weight / self.scale
        return raw, float(bias - raw @ self.mean)
