"""The choices that determine an activation. Offline and online must share them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = ["ActivationSpec", "Fingerprint", "Layers", "Quantization"]

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _as_tuple(layers: object) -> object:
    return (layers,) if isinstance(layers, int) else layers


def _check_ascending(layers: Sequence[int]) -> Sequence[int]:
    if any(low >= high for low, high in pairwise(layers)):
        raise PydanticCustomError(
            "layers", "layers must be ascending and distinct", {"hint": f"Write {sorted(set(layers))}"}
        )
    return layers


Layers = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(_as_tuple),
    AfterValidator(_check_ascending),
    Field(min_length=1),
]
"""Layers that are read side by side, ascending; one number stands for one layer."""

Quantization = Literal["int8", "nf4"]
"""How the weights of the blocks are stored in fewer bits."""


class ActivationSpec(BaseModel):
    """The base model, and the place in it where activations are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, Field(min_length=1)]
    """Hugging Face id, local path, or ``package:NAME`` for a model folder that an installed Python package carries."""
    revision: str | None = None
    """Revision of a Hugging Face id."""
    layers: Layers
    """Indices of the blocks whose activations are read: one number or an ascending list. Deeper layers cost more; the
    blocks above the deepest are never loaded."""
    site: Literal["input_norm", "residual"] = "input_norm"
    """Site in the block. ``input_norm``: output of block l's input norm (arXiv 2604.14251, section 4). ``residual``:
    the residual stream that enters block l, ``hidden_states[l]``; the only choice for post-norm encoders such as
    BERT."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights and the forward pass."""
    quantization: Quantization | None = None
    """Weights of the blocks in 8 or 4 bits: ``int8`` or ``nf4``, with the extra ``large``. By default in ``dtype``."""
    window: Annotated[int, Field(ge=8)] | None = None
    """Tokens in one forward window. By default what the model's positions allow, at most 4096. Longer conversations are
    read in several windows, without a gap."""
    max_tokens: Annotated[int, Field(ge=1)] = 32_768
    """Largest number of tokens of a conversation. Longer ones are not read: the rail's ``on_overlong`` decides."""


class Fingerprint(BaseModel):
    """Hashes of a loaded model. A policy recognises by them the model that it was calibrated on.

    Attributes:
        architecture: Class name of the base model.
        hidden_size: Width of one layer's activation.
        window: Tokens in one forward window, resolved.
        weights_sha256: Names, shapes and an even sample of the values of all loaded weights.
        tokenizer_sha256: The serialised tokenizer.
        template_sha256: The chat template, or the rule for plain text where there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    hidden_size: int
    window: int
    weights_sha256: _Sha256
    tokenizer_sha256: _Sha256
    template_sha256: _Sha256
