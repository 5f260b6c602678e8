"""What the two probes of a policy are made of."""

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

__all__ = ["Component", "DelegationCosts", "Feature", "Output", "ProbeSpec", "Reduction", "check_tensors"]

Output = Literal["p", "eta", "e1", "e0", "value"]
Reduction = Literal["mean", "ema", "rolling", "attention", "multimax"]
Feature = Literal["logit", "uncertainty", "length"]

_PLUG_IN: Final[tuple[Output, ...]] = ("p", "eta", "e1", "e0")
_VALUE: Final[tuple[Output, ...]] = ("p", "value")

_Price = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DelegationCosts(_Section):
    """Prices of the two errors of a verdict, in the same unit. Only their ratio matters."""

    missed: _Price = 1.0
    """Price of an unsafe input that is allowed."""
    false_alarm: _Price = 1.0
    """Price of a safe input that is blocked."""

    @property
    def relative(self) -> tuple[float, float]:
        """The costs (missed, false alarm) as shares of the larger one, which keeps values in [-1, 1]."""
        largest = max(self.missed, self.false_alarm)
        return self.missed / largest, self.false_alarm / largest


class Component(_Section):
    """One way to reduce the tokens of a window, and the heads that it adds to.

    Attributes:
        reduction: ``mean`` over tokens; ``ema``: running mean, then the maximum; ``rolling``: mean over a span of
            tokens, then the maximum; ``attention``: softmax-weighted mean, summed over ``heads``; ``multimax``:
            maximum over tokens, summed over ``heads``.
        outputs: Heads that it adds to.
        heads: Of ``attention`` and ``multimax``; the others have one.
        decay: Share of the past in the running mean of ``ema``.
        span: Tokens of the span of ``rolling``.
    """

    reduction: Reduction = "mean"
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    heads: _Count = 8
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    span: _Count = 40

    @property
    def columns(self) -> int:
        """Numbers that it takes from each token."""
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
    """Both probes: how the delegation value is put together, and from which components.

    The value of a head is the sum of what its components add, and its bias. So an ensemble is the mean of its
    members, stored as scaled components.

    Attributes:
        delegation: ``plug_in``: heads p, eta, e1, e0 (:mod:`ctd_guardrail.probes.delegation`). ``direct``: a head for
            the delegation value itself, as in arXiv 2604.14251. ``binary``: a head for the logit of P(the probe is
            wrong and the expert right).
        components: What adds to the heads; every head has at least one.
        costs: Of the errors, for ``plug_in``; the others carry them in what they were trained on.
        features: Numbers that the heads after p read beside activations: the ``logit`` of p, the ``uncertainty``
            |p - 1/2|, and the ``length``, the logarithm of the window's tokens.
    """

    delegation: Literal["plug_in", "direct", "binary"] = "plug_in"
    components: Annotated[tuple[Component, ...], Field(min_length=1)] = (Component(outputs=_PLUG_IN),)
    costs: DelegationCosts = DelegationCosts()
    features: tuple[Feature, ...] = ()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The heads, in the order of the tensors; p is the first."""
        return _PLUG_IN if self.delegation == "plug_in" else _VALUE

    @property
    def is_linear_in_mean(self) -> bool:
        """Whether mean-pooled activations are all that the probes read."""
        return all(component.reduction == "mean" for component in self.components)

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of all tensors for activations of this width."""
        heads = len(self.outputs)
        extra: dict[str, tuple[int, ...]] = {"extra": (heads - 1, len(self.features))} if self.features else {}
        parts = {
            f"{number}.{name}": shape
            for number, component in enumerate(self.components)
            for name, shape in component.shapes(width).items()
        }
        return {"bias": (heads,)} | extra | parts

    @model_validator(mode="after")
    def _has_every_head_once(self) -> ProbeSpec:
        named = [component.outputs for component in self.components]
        for names in (self.features, *named):
            if len(set(names)) < len(names):
                raise PydanticCustomError("repeated", "{names} repeats a name", {"names": str(list(names))})
        if set(chain.from_iterable(named)) != set(self.outputs):
            raise PydanticCustomError(
                "outputs",
                "the components of {delegation} probes add to {outputs}, and no other head",
                {"delegation": self.delegation, "outputs": ", ".join(self.outputs)},
            )
        return self


def check_tensors(spec: ProbeSpec, width: int, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Refuse tensors that are not those of the spec.

    Args:
        spec: What the probes are made of.
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
