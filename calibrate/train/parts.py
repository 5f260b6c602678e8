"""Trained components, and their assembly to the probes of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import OUTPUTS, Component, Output, ProbeSpec

__all__ = ["Part", "join_parts"]


# The query of an attention head sets the weights of its sum. It stays the same when the sum is scaled.
_QUERY: Final = "query"


@dataclass(frozen=True, slots=True)
class Part:
    """One trained component and the biases of its heads.

    Attributes:
        component: Its reduction and its heads.
        tensors: Parameters on raw activations, with the names of :meth:`Component.shapes`.
        bias: Bias of each head, shape [outputs].
    """

    component: Component
    tensors: Mapping[str, FloatArray]
    bias: FloatArray

    def times(self, factor: float) -> Part:
        """Return the part whose contribution is ``factor`` times as large; ``factor`` is positive."""
        return self._rescale(np.full(self.bias.size, factor), np.zeros_like(self.bias))

    def rescaled(self, slope: float, offset: float, heads: Sequence[Output]) -> Part:
        """Return the part whose named heads x become ``slope x + offset``; ``slope`` is not negative."""
        named = np.isin(self.component.outputs, heads)
        return self._rescale(np.where(named, slope, 1.0), np.where(named, offset, 0.0))

    def shared(self, head: Output, also: Output) -> Part:
        """Return the part that contributes to the head ``also`` what it contributes to ``head``."""
        place = self.component.outputs.index(head)
        order = [*range(self.bias.size), place]
        return Part(
            self.component.model_copy(update={"outputs": (*self.component.outputs, also)}),
            {name: tensor if name == _QUERY else tensor[order] for name, tensor in self.tensors.items()},
            self.bias[order],
        )

    def widened(self, columns: IntArray, width: int) -> Part:
        """Return the part that reads some columns of wider activations, and ignores the others.

        Args:
            columns: Columns of the activations that it was trained on, shape [its width].
            width: Width of the wider activations.
        """

        def widen(tensor: FloatArray) -> FloatArray:
            wide = np.zeros((*tensor.shape[:-1], width))
            wide[..., columns] = tensor
            return wide

        return replace(self, tensors={name: widen(tensor) for name, tensor in self.tensors.items()})

    def _rescale(self, slopes: FloatArray, offsets: FloatArray) -> Part:
        def scale(tensor: FloatArray) -> FloatArray:
            return tensor * slopes.reshape(-1, *[1] * (tensor.ndim - 1))

        return replace(
            self,
            tensors={name: tensor if name == _QUERY else scale(tensor) for name, tensor in self.tensors.items()},
            bias=scale(self.bias) + offsets,
        )


def join_parts(parts: Sequence[Part]) -> Probes:
    """Return the probes whose heads are the sums of the parts.

    Args:
        parts: Together they contribute to every head.
    """
    joined = _join_means(parts)
    bias = np.zeros(len(OUTPUTS))
    tensors: dict[str, FloatArray] = {}
    for number, part in enumerate(joined):
        bias[[OUTPUTS.index(name) for name in part.component.outputs]] += part.bias
        tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
    tensors["bias"] = bias
    spec = ProbeSpec(components=tuple(part.component for part in joined))
    return Probes(spec, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def _join_means(parts: Sequence[Part]) -> list[Part]:
    """Join all linear heads on the mean to one component. Each head is in one of them."""
    means = [part for part in parts if part.component.reduction == "mean"]
    others = [part for part in parts if part.component.reduction != "mean"]
    if not means:
        return others
    outputs = tuple(name for part in means for name in part.component.outputs)
    weight = np.concatenate([part.tensors["weight"] for part in means])
    bias = np.concatenate([part.bias for part in means])
    return [Part(Component(outputs=outputs), {"weight": weight}, bias), *others]
