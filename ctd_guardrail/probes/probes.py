"""The safety probe p and the delegation value d of every window, in one pass over its token activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.probes import reductions
from ctd_guardrail.probes.delegation import delegation_value
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import OUTPUTS, ProbeSpec, check_tensors

__all__ = ["Probes", "scores"]


class Probes:
    """Both probes as one :data:`~ctd_guardrail.activations.base_model.Head` of width 2.

    Args:
        spec: Components of the probes.
        tensors: Parameters, with the names and shapes of :meth:`ProbeSpec.shapes`.

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
        self._heads = [torch.tensor([OUTPUTS.index(name) for name in part.outputs]) for part in spec.components]

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

    def from_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return (p, d) of each window from mean-pooled activations.

        Args:
            pooled: float32, shape [windows, width].

        Raises:
            ConfigError: A component reads more than the mean.
        """
        if not self.spec.is_linear_in_mean:
            raise ConfigError("these probes read every token, not the mean", hint="Run them on token activations")
        self._follow(pooled.device)
        # The mean of one vector is the vector.
        return self._from_columns(self._project(pooled), (1,) * len(pooled))

    def _follow(self, device: torch.device) -> None:
        if self._projection.device != device:
            # This happens once: the probes move to the device of the base model.
            self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
            self._projection = self._projection.to(device)
            self._heads = [heads.to(device) for heads in self._heads]

    def _project(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the columns of all components for each token, shape [T, columns]."""
        columns: torch.Tensor = activations.to(self._projection.dtype) @ self._projection.T
        return columns

    def _from_columns(self, columns: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return scores(self._reduce(columns, lengths))

    def _reduce(self, columns: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return the heads of each window, shape [windows, outputs]."""
        segments = Segments.of(lengths, columns.device)
        parts = columns.split([component.columns for component in self.spec.components], dim=1)
        values = self._tensors["bias"].expand(len(lengths), -1)
        for component, part, heads in zip(self.spec.components, parts, self._heads, strict=True):
            values = values.index_add(1, heads, reductions.reduce(component, part, segments))
        return values


def scores(heads: torch.Tensor) -> torch.Tensor:
    """Return (p, d) of each window, shape [windows, 2].

    Args:
        heads: Sums of the components and the biases, in the order of :data:`OUTPUTS`, shape [windows, 4].
    """
    logit_p, logit_eta, e1, e0 = heads.unbind(dim=1)
    p = torch.sigmoid(logit_p)
    return torch.stack([p, delegation_value(p, torch.sigmoid(logit_eta), e1, e0)], dim=1)


def _own(tensors: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Return the tensors of one component under their own names."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _projection(spec: ProbeSpec, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the one matrix of all components, shape [columns, width]."""
    parts = [reductions.matrix(component, _own(tensors, i)) for i, component in enumerate(spec.components)]
    return torch.cat(parts)
