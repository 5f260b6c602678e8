"""Components of the two probes of a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.errors import PolicyFormatError

__all__ = ["OUTPUTS", "Component", "Output", "ProbeSpec", "Reduction", "check_tensors"]

Output = Literal["p", "eta", "e1", "e0"]
Reduction = Literal["mean", "ema", "rolling", "attention", "multimax"]

OUTPUTS: Final[tuple[Output, ...]] = ("p", "eta", "e1", "e0")
"""The heads of every probe, in the order of its tensors: the safety probe, and the three parts of the delegation value
(:mod:`ctd_guardrail.probes.delegation`)."""

_Count = Annotated[int, Field(ge=1, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(_Section):
    """A reduction of the tokens of a window, and the heads that it contributes to.

    Attributes:
        reduction: ``mean``: mean over tokens. ``ema``: running mean, then the maximum. ``rolling``: mean over a span of
            tokens, then the maximum. ``attention``: softmax-weighted mean, summed over ``heads``. ``multimax``:
            maximum over tokens, summed over ``heads``.
        outputs: Heads that it contributes to.
        heads: Attention heads of ``attention`` and ``multimax``; the others have one.
        decay: Weight of the past in the running mean of ``ema``.
        span: Tokens in one span of ``rolling``.
    """

    reduction: Reduction = "mean"
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    heads: _Count = 8
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    span: _Count = 40

    @property
    def columns(self) -> int:
        """Number of columns that it projects each token to."""
        return sum(math.prod(shape) for shape in self.shapes(1).values())

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of this component's tensors for activations of this width."""
        outputs = len(self.outputs)
        match self.reduction:
            case "attention":
                return {"query": (self.heads, width), "value": (outputs, self.heads, width)}
            case "multimax":
                return {"value": (outputs, self.heads, width)}
            case _:
                return {"weight": (outputs, width)}


class ProbeSpec(_Section):
    """Components of both probes.

    A head is the sum of its components' contributions and its bias. An ensemble is stored as scaled components.

    Attributes:
        components: Together they contribute to every head.
    """

    components: Annotated[tuple[Component, ...], Field(min_length=1)] = (Component(outputs=OUTPUTS),)

    @property
    def is_linear_in_mean(self) -> bool:
        """Whether the probes read nothing but mean-pooled activations."""
        return all(component.reduction == "mean" for component in self.components)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of all tensors for activations of this width."""
        parts = {
            f"{number}.{name}": shape
            for number, component in enumerate(self.components)
            for name, shape in component.shapes(width).items()
        }
        return {"bias": (len(OUTPUTS),)} | parts

    @model_validator(mode="after")
    def _has_every_head_once(self) -> ProbeSpec:
        named = [component.outputs for component in self.components]
        for names in named:
            if len(set(names)) < len(names):
                raise PydanticCustomError("repeated", "{names} repeats a name", {"names": str(list(names))})
        if missing := set(OUTPUTS) - set(chain.from_iterable(named)):
            raise PydanticCustomError(
                "outputs", "no component contributes to {missing}", {"missing": ", ".join(sorted(missing))}
            )
        return self


def check_tensors(spec: ProbeSpec, width: int, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Refuse tensors that do not match the spec.

    Args:
        spec: Components of the probes.
        width: Width of the activations.
        tensors: By name.

    Raises:
        PolicyFormatError: A tensor is missing, surplus, of another shape or type, or not finite.
    """
    expected = spec.shapes(width)
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, found = expected.get(name), tensors.get(name)
        if wanted is None:
            raise PolicyFormatError(f"the probes have no tensor {name!r}")
        if found is None:
            raise PolicyFormatError(f"the probes lack tensor {name!r}")
        if found.shape != wanted or found.dtype != np.float32:
            raise PolicyFormatError(f"probe tensor {name!r} is {found.dtype} {found.shape}, not float32 {wanted}")
        if not np.isfinite(found).all():
            raise PolicyFormatError(f"probe tensor {name!r} holds values that are not finite")
