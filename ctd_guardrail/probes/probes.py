"""The safety probe p and the delegation value d of every window, in one pass over its token activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ctd_guardrail._typing import Float32Array, IntArray
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.probes import reductions
from ctd_guardrail.probes.delegation import delegation_value
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import Feature, ProbeSpec, check_tensors

__all__ = ["Probes", "extra_features", "scores"]


class Probes:
    """Both probes as one :data:`~ctd_guardrail.activations.base_model.Head` of width 2.

    Args:
        spec: What they are made of.
        tensors: Their parameters, under the names and of the shapes of :meth:`ProbeSpec.shapes`.

    Raises:
        PolicyFormatError: A tensor is missing, surplus, of another shape or type, or not finite.
    """

    def __init__(self, spec: ProbeSpec, tensors: Mapping[str, Float32Array]) -> None:
        self.spec = spec
        self.width = next(
            (array.shape[-1] for name, array in tensors.items() if array.ndim and name.startswith("0.")), 0
        )
        check_tensors(spec, self.width, tensors)
        self._tensors = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        self._projection = _projection(spec, self._tensors)
        self._heads = [torch.tensor([spec.outputs.index(name) for name in part.outputs]) for part in spec.components]

    @property
    def projection(self) -> Float32Array:
        """The one matrix that both probes read activations with, shape [columns, width]."""
        projection: Float32Array = self._projection.cpu().numpy()
        return projection

    def tensors(self) -> dict[str, Float32Array]:
        """Return the parameters under their names, as the constructor takes them."""
        return {name: tensor.cpu().numpy() for name, tensor in self._tensors.items()}

    def __call__(self, activations: Ragged) -> torch.Tensor:
        """Return (p, d) of each window, shape [windows, 2]: p in [0, 1] and d in [-1, 1]."""
        self._follow(activations.values.device)
        return self._from_columns(self._project(activations.values), activations.lengths)

    def from_columns(self, columns: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return (p, d) of each window from activations that were projected elsewhere.

        Args:
            columns: ``activations @ projection.T``, float32, shape [sum(lengths), columns].
            lengths: Tokens of each window, all positive.
        """
        self._follow(columns.device)
        return self._from_columns(columns, lengths)

    def from_pooled(self, pooled: torch.Tensor, lengths: Sequence[int] | IntArray | None = None) -> torch.Tensor:
        """Return (p, d) of each window from mean-pooled activations.

        Args:
            pooled: float32, shape [windows, width].
            lengths: Tokens of each window; None where no feature reads them.

        Raises:
            ConfigError: A component reads more than the mean, or a feature reads lengths that are not given.
        """
        if not self.spec.is_linear_in_mean:
            raise ConfigError("these probes read every token, not the mean", hint="Run them on token activations")
        if lengths is None and "length" in self.spec.features:
            raise ConfigError("these probes read the length of a window", hint="Give the number of tokens of each")
        self._follow(pooled.device)
        # The mean of one vector is the vector.
        ones = (1,) * len(pooled)
        values = self._reduce(self._project(pooled), ones)
        return scores(self.spec, self._tensors, values, ones if lengths is None else lengths)

    def _follow(self, device: torch.device) -> None:
        if self._projection.device != device:
            # Once: the probes move to the device that the base model turns out to be on.
            self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
            self._projection = self._projection.to(device)
            self._heads = [heads.to(device) for heads in self._heads]

    def _project(self, activations: torch.Tensor) -> torch.Tensor:
        """Return what the components read of each token, shape [T, columns]."""
        columns: torch.Tensor = activations.to(self._projection.dtype) @ self._projection.T
        return columns

    def _from_columns(self, columns: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return scores(self.spec, self._tensors, self._reduce(columns, lengths), lengths)

    def _reduce(self, columns: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the heads of each window, shape [windows, outputs]."""
        segments = Segments.of(lengths, columns.device)
        parts = columns.split([component.columns for component in self.spec.components], dim=1)
        values = self._tensors["bias"].expand(len(lengths), -1)
        for component, part, heads in zip(self.spec.components, parts, self._heads, strict=True):
            values = values.index_add(1, heads, reductions.reduce(component, part, segments))
        return values


def scores(
    spec: ProbeSpec,
    tensors: Mapping[str, torch.Tensor],
    values: torch.Tensor,
    lengths: Sequence[int] | IntArray,
) -> torch.Tensor:
    """Return (p, d) of each window, shape [windows, 2], from its heads.

    Args:
        spec: What the probes are made of.
        tensors: Parameters; ``extra`` is read where the spec has features.
        values: Sums of what the components add and the biases, in the order of ``spec.outputs``, shape
            [windows, outputs].
        lengths: Tokens of each window.
    """
    logit = values[:, 0]
    p = torch.sigmoid(logit)
    heads = values[:, 1:]
    if spec.features:
        heads = heads + extra_features(spec.features, logit, p, lengths) @ tensors["extra"].T
    match spec.delegation:
        case "plug_in":
            eta, e1, e0 = heads.unbind(dim=1)
            d = delegation_value(p, torch.sigmoid(eta), e1, e0, costs=spec.costs)
        case "direct":
            d = heads[:, 0].clamp(-1.0, 1.0)
        case "binary":
            d = torch.sigmoid(heads[:, 0])
    return torch.stack([p, d], dim=1)


def extra_features(
    names: Sequence[Feature], logit: torch.Tensor, p: torch.Tensor, lengths: Sequence[int] | IntArray
) -> torch.Tensor:
    """Return what the heads after p read beside activations, shape [windows, features].

    Args:
        names: Which.
        logit: Of p, shape [windows].
        p: Safety probe, shape [windows].
        lengths: Tokens of each window.
    """
    columns = {
        "logit": logit,
        "uncertainty": (p - 0.5).abs(),
        "length": torch.as_tensor(lengths, dtype=p.dtype, device=p.device).log(),
    }
    return torch.stack([columns[name] for name in names], dim=1)


def _own(tensors: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Return the tensors of one component under their own names."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _projection(spec: ProbeSpec, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the one matrix of all components, shape [columns, width]."""
    parts = [reductions.matrix(component, _own(tensors, i)) for i, component in enumerate(spec.components)]
    return torch.cat(parts)
