"""The section ``probes`` of CALIBRATE.yml: training of the two probes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from ctd_guardrail.activations.spec import Layers
from ctd_guardrail.config.types import Section
from ctd_guardrail.probes.spec import DelegationCosts, Feature, Reduction

__all__ = ["Delegation", "TrainOptions"]

Delegation = Literal["plug_in", "direct", "binary"]


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("distinct", "an entry stands there twice", {"hint": "Write each once"})
    return values


class TrainOptions(Section):
    """Kinds of probes and their candidates for cross-validation."""

    layers: Annotated[tuple[Layers, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    """Candidates for the safety probe, each a list of layers of ``base.layers`` that are read side by side. By default
    each layer alone, and all together."""
    delegation_layers: Literal["auto", "all", "same"] = "auto"
    """Layers that the delegation heads read: ``all`` of ``base.layers``, or the ``same`` as the safety probe, which
    saves deeper layers in the rail. ``auto`` is ``all`` with ``data.safety_path`` and ``same`` without."""
    kinds: Annotated[tuple[Reduction, ...], Field(min_length=1), AfterValidator(_distinct)] = ("mean",)
    """Candidates for the reduction of token activations. With several, their average is a candidate too. All but
    ``mean`` read every token, and take minutes to hours to train."""
    delegation: Delegation = "plug_in"
    """Method that predicts d. ``plug_in``: eta, e1 and e0 are learnt and put together with p. ``direct``: d is a ridge
    regression of v (arXiv 2604.14251, section 4). ``binary``: d is the probability that the probe is wrong and the
    expert right, which never shows harm; for comparison."""
    costs: DelegationCosts = DelegationCosts()
    """Weights of unsafe and safe rows in the delegation value."""
    features: Annotated[tuple[Feature, ...], AfterValidator(_distinct)] = ()
    """Inputs of the delegation heads (not of eta) beside activations: ``logit`` of p, ``uncertainty`` |p - 1/2|, and
    ``length``, the logarithm of the number of tokens."""
    calibrate: Literal["none", "platt", "auto"] = "none"
    """Platt scaling of p and of the expert's score: ``none``, ``platt``, or ``auto``: if it lowers the out-of-fold
    Brier score of the cascade. A scaled verdict of an expert that is often wrong may no longer block."""
    merge: Literal["replace", "average", "stacking"] = "replace"
    """Score of a delegated input: ``replace`` (the expert's), ``average`` of both, or ``stacking`` (a logistic
    regression on both logits)."""
    seeds: Annotated[int, Field(ge=1, le=32)] = 1
    """Members of the ensemble, for the kinds that are trained by gradient descent."""
    token_rows: Annotated[int, Field(ge=100)] = 8000
    """Training rows whose token activations are kept in the cache, for all kinds but ``mean``."""

    @property
    def reads_tokens(self) -> bool:
        """Whether a candidate needs token activations, not only their mean."""
        return self.kinds != ("mean",)

    def layer_sets(self, available: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the candidates, all of them subsets of the available layers, shape by shape."""
        if self.layers is not None:
            return self.layers
        alone = tuple((layer,) for layer in available)
        return (*alone, available) if len(available) > 1 else alone

    def kind_sets(self) -> tuple[tuple[Reduction, ...], ...]:
        """Return the candidates: each kind alone, and the average of all."""
        alone = tuple((kind,) for kind in self.kinds)
        return (*alone, self.kinds) if len(self.kinds) > 1 else alone
