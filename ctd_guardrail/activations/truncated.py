"""A Hugging Face model cut off above the deepest layer that is read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModel

from ctd_guardrail.activations.packing import ATTENTION
from ctd_guardrail.activations.quantization import quantization_config, require
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError, ConfigError

__all__ = ["TruncatedModel"]

_ENCODERS: Final = frozenset({"bert", "modernbert"})
# Tests show that their activations are the same packed and alone. Others are padded, with their own attention.
_PACKED: Final = _ENCODERS | {"gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"}
_FINAL_NORMS: Final = ("norm", "final_norm", "final_layernorm")
_INPUT_NORMS: Final = ("input_layernorm", "attn_norm")


class TruncatedModel:
    """The blocks below the deepest layer; a forward pass gives the activations of all layers side by side.

    Layer l of site ``residual`` is the stream that enters block l. Layer l of site ``input_norm`` is the output of that
    block's input norm. The deepest layer is the model's own output: its input norm is loaded in place of the final
    norm, and no later weights are read. Hooks read the other layers during the pass.

    Args:
        path: Model folder or Hugging Face id.
        spec: Layers, site, dtype, quantisation and revision.
        config: The model's configuration.
        devices: Torch devices; the blocks are spread over them evenly, in order.

    Attributes:
        module: The model.
        device: Where it takes its input.
        is_packed: Whether it takes packed sequences.
        is_causal: Whether tokens see only those before them.

    Raises:
        ActivationError: The model cannot be loaded, or its architecture is not supported.
        ConfigError: A layer or the site does not exist in this model.
        DependencyError: Quantisation, or several devices, need a package that is not installed.
    """

    def __init__(self, path: str, spec: ActivationSpec, config: Any, *, devices: Sequence[str] = ("cpu",)) -> None:
        _check_layers(spec, config)
        names = _Names.of(config)
        self.is_packed = config.model_type in _PACKED
        self.is_causal = config.model_type not in _ENCODERS
        self.device = torch.device(devices[0])
        self.module = _load(path, spec, _options(spec, config, names, devices))
        if len(devices) == 1 and spec.quantization is None:
            self.module.to(self.device)
        if spec.site == "residual" and names.final_norm is not None:
            setattr(self.module, names.final_norm, nn.Identity())
        self._norms = [self.module.get_submodule(path) for path in _norm_paths(spec, names)]
        self._shallower: dict[int, torch.Tensor] = {}
        for layer in spec.layers[:-1]:
            block = self.module.get_submodule(f"{names.blocks}.{layer}")
            if spec.site == "residual":
                block.register_forward_pre_hook(self._keep_input(layer))
            else:
                block.get_submodule(names.input_norm).register_forward_hook(self._keep_output(layer))

    def __call__(self, **arguments: Any) -> torch.Tensor:
        """Return activations of shape [batch, tokens, hidden size * layers]. Takes the arguments of the model.

        Not thread-safe: only the device thread calls it.
        """
        if self.is_causal:
            # A cache would mix the sequences of a packed row, and is of no use elsewhere.
            arguments["use_cache"] = False
        deepest: torch.Tensor = self.module(**arguments).last_hidden_state
        if not self._shallower:
            return deepest
        shallower = [self._shallower[layer].to(deepest.device) for layer in sorted(self._shallower)]
        # An idle model must not keep the last batch's activations alive.
        self._shallower.clear()
        return torch.cat([*shallower, deepest], dim=-1)

    def from_hidden_states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return activations, shape [tokens, hidden size * layers], from the residual stream that enters each block.

        Args:
            hidden: ``hidden_states`` at the layers that are read, shape [tokens, layers, hidden size].
        """
        if not self._norms:
            return hidden.flatten(1)
        # Past the hooks, which wait for a forward pass of the model.
        columns = [norm.forward(hidden[:, i].to(_device(norm))) for i, norm in enumerate(self._norms)]
        return torch.cat([column.to(columns[-1].device) for column in columns], dim=1)

    def _keep_input(self, layer: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._shallower[layer] = arguments[0]

        return hook

    def _keep_output(self, layer: int) -> Any:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            self._shallower[layer] = output

        return hook


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the parts of an architecture.

    Attributes:
        parts: Of the whole model.
        blocks: The list of blocks.
        input_norm: Within a block; empty: there is none.
        final_norm: Above the blocks; None: the blocks normalise what leaves them.
    """

    parts: tuple[str, ...]
    blocks: str
    input_norm: str
    final_norm: str | None

    @classmethod
    def of(cls, config: Any) -> _Names:
        """Find the names in a model of one block without weights."""
        small = copy.deepcopy(config)
        small.num_hidden_layers = 1
        with torch.device("meta"):
            model = AutoModel.from_config(small)
        parts = tuple(name for name, _ in model.named_children())
        if config.model_type == "bert":
            return cls(parts, "encoder.layer", "", None)
        final = next((name for name in _FINAL_NORMS if name in parts), None)
        if final is None or not isinstance(getattr(model, "layers", None), nn.ModuleList):
            raise ActivationError(
                f"{type(model).__name__} is not a supported architecture",
                hint="Supported: models with .layers and a final norm (Llama, Qwen, Gemma, Mistral, Phi), and BERT",
            )
        return cls(parts, "layers", next((n for n in _INPUT_NORMS if hasattr(model.layers[0], n)), ""), final)


def _norm_paths(spec: ActivationSpec, names: _Names) -> list[str]:
    """Return the names of the norms that turn the residual stream into activations; none for the stream itself."""
    if spec.site == "residual" or names.final_norm is None:
        return []
    return [*(f"{names.blocks}.{layer}.{names.input_norm}" for layer in spec.layers[:-1]), names.final_norm]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _check_layers(spec: ActivationSpec, config: Any) -> None:
    depth = getattr(config, "num_hidden_layers", None)
    if depth is None:
        raise ActivationError(
            f"base model {spec.model!r} ({config.model_type}) is not a plain text model",
            hint="Use the text-only checkpoint of this family",
        )
    last = depth if spec.site == "residual" else depth - 1
    if spec.layers[-1] > last:
        raise ConfigError(
            f"layer {spec.layers[-1]} does not exist: {spec.model!r} has {depth} layers",
            key="base.layers",
            hint=f"Choose layers from 1 to {last} for site {spec.site}",
        )


def _options(spec: ActivationSpec, config: Any, names: _Names, devices: Sequence[str]) -> dict[str, Any]:
    """Return the options with which the model is loaded."""
    deepest = spec.layers[-1]
    options: dict[str, Any] = {"num_hidden_layers": deepest, "dtype": getattr(torch, spec.dtype)}
    # Pickled weights can run code, and a policy from elsewhere names the model.
    options["use_safetensors"] = True
    if config.model_type in _PACKED:
        options["attn_implementation"] = ATTENTION
    if config.model_type == "bert":
        options["add_pooling_layer"] = False
    if spec.site == "input_norm":
        if not names.input_norm or names.final_norm is None:
            raise ConfigError(
                f"the blocks of {config.model_type} have no input norm", key="base.site", hint="Set site: residual"
            )
        # As the files are read, the final norm is renamed out of the way and the block's input norm into its place.
        options["key_mapping"] = {
            rf"^(?:model\.)?{names.final_norm}\.": "unread.",
            rf"^(?:model\.)?{names.blocks}\.{deepest}\.{names.input_norm}\.": f"{names.final_norm}.",
        }
    if spec.quantization is not None:
        options["quantization_config"] = quantization_config(spec.quantization, options["dtype"])
    if len(devices) > 1 or spec.quantization is not None:
        require("accelerate", "large")
        options["device_map"] = _device_map(names, deepest, devices)
    return options


def _device_map(names: _Names, blocks: int, devices: Sequence[str]) -> dict[str, str]:
    """Return the device of each part: parts below the blocks on the first device, parts above on the last."""
    placed = {part: devices[0] for part in names.parts if part != names.blocks.split(".")[0]}
    placed |= {f"{names.blocks}.{i}": devices[i * len(devices) // blocks] for i in range(blocks)}
    return placed if names.final_norm is None else placed | {names.final_norm: devices[-1]}


def _load(path: str, spec: ActivationSpec, options: dict[str, Any]) -> nn.Module:
    try:
        model, info = AutoModel.from_pretrained(path, revision=spec.revision, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ActivationError(f"base model {spec.model!r} cannot be loaded: {error}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ActivationError(
            f"the files of base model {spec.model!r} lack {len(missing)} weights, for example {missing[0]}",
            hint="Download the model again, or name the checkpoint of a base model",
        )
    module: nn.Module = model.eval()
    return module
