"""A Hugging Face model cut off above the deepest layer that is read."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModel

from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError, ConfigError

__all__ = ["TruncatedModel"]

_ENCODERS: Final = frozenset({"bert", "modernbert"})
_FINAL_NORMS: Final = ("norm", "final_norm", "final_layernorm")
_INPUT_NORMS: Final = ("input_layernorm", "attn_norm")


class TruncatedModel:
    """The blocks below the deepest layer; a forward pass gives the activations of all layers side by side.

    Layer l of site ``residual`` is the stream that enters block l, of site ``input_norm`` what that block's input norm
    makes of it. The deepest is the model's own output; the others are read by hooks on the way.

    Args:
        path: Model folder or Hugging Face id.
        spec: Layers, site, dtype and revision.
        config: The model's configuration.

    Raises:
        ActivationError: The model cannot be loaded, or its architecture is not supported.
        ConfigError: A layer or the site does not exist in this model.
    """

    def __init__(self, path: str, spec: ActivationSpec, config: Any) -> None:
        self.module = _load(path, spec, config)
        self.is_causal = config.model_type not in _ENCODERS
        blocks = _blocks(self.module)
        self._shallower: dict[int, torch.Tensor] = {}
        for layer in spec.layers[:-1]:
            if spec.site == "residual":
                blocks[layer].register_forward_pre_hook(self._keep_input(layer))
            else:
                _input_norm(self.module, blocks[layer]).register_forward_hook(self._keep_output(layer))
        _cut(self.module, spec)

    def __call__(self, **arguments: Any) -> torch.Tensor:
        """Return activations of shape [batch, tokens, hidden size * layers]; arguments as the model takes them.

        Not thread-safe: it belongs to one device thread.
        """
        deepest: torch.Tensor = self.module(**arguments).last_hidden_state
        if not self._shallower:
            return deepest
        shallower = [self._shallower[layer] for layer in sorted(self._shallower)]
        # An idle model must not keep the last batch's activations alive.
        self._shallower.clear()
        return torch.cat([*shallower, deepest], dim=-1)

    def _keep_input(self, layer: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._shallower[layer] = arguments[0]

        return hook

    def _keep_output(self, layer: int) -> Any:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            self._shallower[layer] = output

        return hook


def _load(path: str, spec: ActivationSpec, config: Any) -> nn.Module:
    depth = getattr(config, "num_hidden_layers", None)
    if depth is None:
        raise ActivationError(
            f"base model {spec.model!r} ({config.model_type}) is not a plain text model",
            hint="Use the text-only checkpoint of this family",
        )
    deepest = spec.layers[-1]
    last = depth if spec.site == "residual" else depth - 1
    if deepest > last:
        raise ConfigError(
            f"layer {deepest} does not exist: {spec.model!r} has {depth} layers",
            key="base.layers",
            hint=f"Choose layers from 1 to {last} for site {spec.site}",
        )
    # The block whose input norm is read is loaded for that norm's weights and dropped again.
    blocks = deepest if spec.site == "residual" else deepest + 1
    options: dict[str, Any] = {"num_hidden_layers": blocks, "dtype": getattr(torch, spec.dtype)}
    if config.model_type == "bert":
        options["add_pooling_layer"] = False
    try:
        model, info = AutoModel.from_pretrained(path, revision=spec.revision, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ActivationError(f"base model {spec.model!r} cannot be loaded: {error}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ActivationError(
            f"the files of base model {spec.model!r} lack {len(missing)} weights, for example {missing[0]}",
            hint="The download is incomplete, or it is not a base model checkpoint",
        )
    module: nn.Module = model.eval()
    return module


def _blocks(model: Any) -> nn.ModuleList:
    blocks = model.encoder.layer if model.config.model_type == "bert" else getattr(model, "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise _unsupported(model)
    return blocks


def _input_norm(model: nn.Module, block: nn.Module) -> nn.Module:
    norm: nn.Module | None = next((getattr(block, name) for name in _INPUT_NORMS if hasattr(block, name)), None)
    if norm is None:
        raise ConfigError(
            f"the blocks of {type(model).__name__} have no input norm", key="base.site", hint="Set site: residual"
        )
    return norm


def _cut(model: Any, spec: ActivationSpec) -> None:
    """Make the model's output the activation of the deepest layer."""
    blocks, deepest = _blocks(model), spec.layers[-1]
    norm = nn.Identity() if spec.site == "residual" else _input_norm(model, blocks[deepest])
    if model.config.model_type == "bert":
        # It normalises inside its blocks: what leaves the last one is the residual stream.
        return
    final = next((name for name in _FINAL_NORMS if hasattr(model, name)), None)
    if final is None:
        raise _unsupported(model)
    setattr(model, final, norm)
    model.layers = blocks[:deepest]
    model.config.num_hidden_layers = deepest


def _unsupported(model: nn.Module) -> ActivationError:
    return ActivationError(
        f"{type(model).__name__} is not a supported architecture",
        hint="Supported: models with .layers and a final norm (Llama, Qwen, Gemma, Mistral, Phi), and BERT",
    )
