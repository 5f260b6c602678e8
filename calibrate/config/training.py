"""How the two probes are trained: the section ``probes`` of CALIBRATE.yml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ctd_guardrail.activations.spec import Layers
from ctd_guardrail.probes.spec import DelegationCosts, Feature, Reduction

__all__ = ["Delegation", "TrainOptions"]

Delegation = Literal["plug_in", "direct", "binary"]


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("distinct", "an entry stands there twice", {"hint": "Write each once"})
    return values


class TrainOptions(BaseModel):
    """Kinds of probes, what they learn, and what is chosen by cross-validation.

    Attributes:
        layers: Candidates for the safety probe, each a list of layers of ``base.layers`` that are read side by side;
            None: each layer alone, and all together.
        delegation_layers: What the delegation heads read: ``all`` of ``base.layers``, or the ``same`` as the safety
            probe, so that a policy reads no deeper than that. ``auto``: all, where the safety probe comes from other
            rows, so that eta is learnt for itself, and the same, where it is refitted.
        kinds: Candidates: how token activations are reduced. With several, their average is a candidate too.
        delegation: ``plug_in``: eta, e1 and e0 are learnt and put together with p. ``direct``: d is a ridge regression
            of v (arXiv 2604.14251, section 4). ``binary``: d is the probability that the probe is wrong and the
            expert right, which never shows harm; for comparison.
        costs: Weights of unsafe and safe rows in the delegation value.
        features: What the delegation heads but eta read beside activations: the logit of p, ``uncertainty``
            |p - 1/2|, and ``length``, the logarithm of the number of tokens.
        calibrate: Platt scaling of p and of the expert's score: ``none``, ``platt``, or ``auto``: where it lowers the
            out-of-fold Brier score of the cascade.
        merge: The cascade's score where the expert is asked: ``replace``, the expert's; ``average`` of both;
            ``stacking``, a logistic regression on both logits.
        seeds: Members of an ensemble, for the kinds that are trained by gradient descent.
        token_rows: Training rows whose token activations are kept, for all kinds but ``mean``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    layers: Annotated[tuple[Layers, ...], Field(min_length=1), AfterValidator(_distinct)] | None = None
    delegation_layers: Literal["auto", "all", "same"] = "auto"
    kinds: Annotated[tuple[Reduction, ...], Field(min_length=1), AfterValidator(_distinct)] = ("mean",)
    delegation: Delegation = "plug_in"
    costs: DelegationCosts = DelegationCosts()
    features: Annotated[tuple[Feature, ...], AfterValidator(_distinct)] = ()
    calibrate: Literal["none", "platt", "auto"] = "none"
    merge: Literal["replace", "average", "stacking"] = "replace"
    seeds: Annotated[int, Field(ge=1, le=32)] = 1
    token_rows: Annotated[int, Field(ge=100)] = 8000

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
