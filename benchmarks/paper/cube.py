"""Figures of several methods at several budgets over several seeds, with their gains and areas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from ctd_guardrail._typing import FloatArray

__all__ = ["FIGURES", "Cube", "standard_error"]


FIGURES: Final = ("auroc", "accuracy", "brier", "missed_harm", "rate")
_LESS_IS_BETTER: Final = ("brier", "missed_harm")
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Cube:
    """Figures by seed, method and budget.

    Attributes:
        methods: Names of the methods.
        alphas: Budgets, ascending.
        values: Shape [seeds, methods, alphas, figures], figures as in :data:`FIGURES`.
    """

    methods: tuple[str, ...]
    alphas: tuple[float, ...]
    values: FloatArray

    def get(self, method: str, figure: str) -> FloatArray:
        """Return one figure of one method, shape [seeds, alphas]."""
        found: FloatArray = self.values[:, self.methods.index(method), :, FIGURES.index(figure)]
        return found

    def gain(self, method: str, over: str, figure: str) -> FloatArray:
        """Return the gain of a method over another on the same rows, shape [seeds, alphas]."""
        sign = -1.0 if figure in _LESS_IS_BETTER else 1.0
        return sign * (self.get(method, figure) - self.get(over, figure))

    def chosen_gain(self, figure: str) -> FloatArray:
        """Return the gain of CTD over the probe, at the certified threshold that is best by this figure."""
        return self.gain(f"ctd_{figure}", "probe", figure)

    def faic(self, method: str, figure: str = "auroc") -> FloatArray:
        """Return area(method - probe) / area(oracle - probe) over budgets from 0 to the largest, shape [seeds]."""
        areas = [self._area(self.gain(name, "probe", figure)) for name in (method, "oracle")]
        ratio: FloatArray = areas[0] / areas[1]
        return ratio

    def _area(self, gain: FloatArray) -> FloatArray:
        from_zero = np.concatenate([np.zeros((len(gain), 1)), gain], axis=1)
        area: FloatArray = np.trapezoid(from_zero, [0.0, *self.alphas], axis=1)
        return area

    @classmethod
    def stack(cls, methods: Sequence[str], alphas: Sequence[float], seeds: Sequence[FloatArray]) -> Self:
        """Join arrays of one seed each, shape [methods, alphas, figures]."""
        return cls(tuple(methods), tuple(alphas), np.stack(seeds))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        return {"methods": self.methods, "alphas": self.alphas, "values": self.values.round(_DIGITS).tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return what :meth:`to_dict` wrote."""
        return cls(tuple(content["methods"]), tuple(content["alphas"]), np.array(content["values"]))


def standard_error(values: FloatArray) -> FloatArray:
    """Return the standard error of the mean over seeds, the first axis; 0 for a single seed."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    error: FloatArray = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return error
