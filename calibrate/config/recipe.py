"""Recipe of a training: the section ``probes`` of CALIBRATE.yml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ctd_guardrail.activations.spec import Layers
from ctd_guardrail.config.types import Section
from ctd_guardrail.probes.spec import Reduction

__all__ = ["Recipe"]


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("distinct", "an entry occurs twice", {"hint": "Write each entry once"})
    return values


class Recipe(Section):
    """Candidates for the probes, and how the probe's score and the expert's score are scaled and merged."""

    layers: Annotated[tuple[Layers, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    """Candidates for the safety probe. Each is a list of layers of ``base.layers`` that are read side by side. None:
    each layer alone, and all together."""
    kinds: Annotated[tuple[Reduction, ...], Field(min_length=1), AfterValidator(_distinct)] = ("mean",)
    """Candidates: reductions of token activations. With several, their average is a candidate too."""
    calibrate: Literal["none", "platt", "auto"] = "none"
    """Platt scaling of p and of the expert's score: ``none``, ``platt``, or ``auto``, which scales them if that lowers
    the held-out Brier score of the cascade."""
    merge: Literal["replace", "average", "stacking"] = "replace"
    """Score of a delegated row: ``replace``, the expert's; ``average`` of both; ``stacking``, a logistic regression on
    both logits."""

    @property
    def reads_tokens(self) -> bool:
        """Whether a candidate needs token activations, not only their mean."""
        return self.kinds != ("mean",)

    def layer_sets(self, available: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the candidates for the layers, all of them subsets of the available layers."""
        if self.layers is not None:
            return self.layers
        alone = tuple((layer,) for layer in available)
        return (*alone, available) if len(available) > 1 else alone

    def kind_sets(self) -> tuple[tuple[Reduction, ...], ...]:
        """Return the candidates for the kinds: each kind alone, and the average of all."""
        alone = tuple((kind,) for kind in self.kinds)
        return (*alone, self.kinds) if len(self.kinds) > 1 else alone
