"""Trained components and their biases, and how they become the probes of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import Component, Output, ProbeSpec

__all__ = ["Part", "assemble"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# What steers a reduction instead of being summed up by it: it stays as it is when the sum is scaled.
_STEERING = "query"


@dataclass(frozen=True, slots=True)
class Part:
    """One component, fitted, with what its heads add beside it.

    Attributes:
        component: How it reduces tokens, and to which heads it adds.
        tensors: Under the names of :meth:`Component.shapes`, on raw activations.
        bias: Of each head, shape [outputs].
        extra: Of each head on the extra features, shape [outputs, features].
    """

    component: Component
    tensors: Mapping[str, FloatArray]
    bias: FloatArray
    extra: FloatArray

    def times(self, factor: float) -> Part:
        """Return the part that adds ``factor`` times as much; ``factor`` is positive."""
        return self._rescale(np.full(self.bias.size, factor), np.zeros_like(self.bias))

    def rescaled(self, slope: float, offset: float, heads: Sequence[Output]) -> Part:
        """Return the part whose named heads x are ``slope x + offset``; ``slope`` is not negative."""
        named = np.isin(self.component.outputs, heads)
        return self._rescale(np.where(named, slope, 1.0), np.where(named, offset, 0.0))

    def shared(self, head: Output, also: Output) -> Part:
        """Return the part that adds to one more head what it adds to ``head``."""
        place = self.component.outputs.index(head)
        order = [*range(self.bias.size), place]
        return Part(
            self.component.model_copy(update={"outputs": (*self.component.outputs, also)}),
            {name: tensor if name == _STEERING else tensor[order] for name, tensor in self.tensors.items()},
            self.bias[order],
            self.extra[order],
        )

    def widened(self, columns: IntArray, width: int) -> Part:
        """Return the part that reads these columns of wider activations, and ignores the others.

        Args:
            columns: Where the activations that it was fitted to lie, shape [its width].
            width: Of the wider activations.
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
            tensors={name: tensor if name == _STEERING else scale(tensor) for name, tensor in self.tensors.items()},
            bias=scale(self.bias) + offsets,
            extra=scale(self.extra),
        )


def assemble(spec: ProbeSpec, parts: Sequence[Part]) -> Probes:
    """Return the probes whose heads are the sums of the parts.

    Args:
        spec: With delegation, costs and features; its components are replaced by those of the parts.
        parts: Together they add to every head of the spec.
    """
    joined = _join_means(parts)
    spec = ProbeSpec(
        delegation=spec.delegation,
        components=tuple(part.component for part in joined),
        costs=spec.costs,
        features=spec.features,
    )
    bias, extra = np.zeros(len(spec.outputs)), np.zeros((len(spec.outputs), len(spec.features)))
    tensors: dict[str, FloatArray] = {}
    for number, part in enumerate(joined):
        heads = [spec.outputs.index(name) for name in part.component.outputs]
        bias[heads] += part.bias
        extra[heads] += part.extra
        tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
    tensors["bias"] = bias
    if spec.features:
        tensors["extra"] = extra[1:]
    return Probes(spec, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def _join_means(parts: Sequence[Part]) -> list[Part]:
    """Make one component of all linear heads on the mean: each head is in one of them."""
    means = [part for part in parts if part.component.reduction == "mean"]
    others = [part for part in parts if part.component.reduction != "mean"]
    if not means:
        return others
    outputs = tuple(name for part in means for name in part.component.outputs)
    weight = np.concatenate([part.tensors["weight"] for part in means])
    bias = np.concatenate([part.bias for part in means])
    extra = np.concatenate([part.extra for part in means])
    return [Part(Component(outputs=outputs), {"weight": weight}, bias, extra), *others]
