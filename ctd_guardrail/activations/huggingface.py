"""Activations from a Hugging Face model in this process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ctd_guardrail.activations.models import resolve_model
from ctd_guardrail.activations.packing import Packing
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.activations.tokens import ConversationTokenizer
from ctd_guardrail.activations.truncated import TruncatedModel
from ctd_guardrail.errors import ActivationError, ConfigError
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.text.conversation import Conversation

__all__ = ["HuggingFaceSource", "hash_weights", "open_tokenizer", "pick_device", "quiet_transformers"]

# Packed batches have many sizes, and oneDNN keeps generated code for the last 1,024 shapes: hundreds of megabytes.
# Fewer make nothing slower. oneDNN reads this once, at the first product of torch on the CPU.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

_LARGEST_WINDOW: Final = 4096
_WEIGHT_SAMPLE: Final = 1024


def pick_device(device: str) -> str:
    """Return the device or devices to use: ``auto`` becomes ``cuda`` where there is one, else ``cpu``."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


class HuggingFaceSource:
    """An :class:`~ctd_guardrail.activations.source.ActivationSource` on transformers and torch.

    Only the blocks below the deepest layer are loaded, and no language-model head, so memory and time are
    layer / depth of the base model. The result equals the full model's ``hidden_states[layer]`` (``residual``), or
    the output of that block's input norm (``input_norm``), for several layers side by side.

    Args:
        spec: Model, layers, site, dtype and quantisation.
        device: A torch device; several with commas between them, over which the blocks are spread; or ``auto``.
        max_batch_tokens: Tokens in one forward pass.

    Raises:
        ActivationError: The model cannot be found or loaded, or its architecture is not supported.
        ConfigError: A layer or the site does not exist in this model.
        DependencyError: ``package:NAME`` is not installed.
    """

    def __init__(self, spec: ActivationSpec, *, device: str = "auto", max_batch_tokens: int = 2048) -> None:
        self._spec = spec
        self._max_batch_tokens = max_batch_tokens
        path, config, tokenizer = _open(spec)
        with quiet_transformers():
            self._model = TruncatedModel(path, spec, config, devices=pick_device(device).split(","))
        self._tokenize = _tokenizer(spec, config, tokenizer)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._fingerprint = Fingerprint(
            architecture=type(self._model.module).__name__,
            hidden_size=int(config.hidden_size),
            window=self._tokenize.window,
            weights_sha256=hash_weights(self._model.module),
            tokenizer_sha256=self._tokenize.tokenizer_sha256,
            template_sha256=self._tokenize.template_sha256,
        )

    @property
    def spec(self) -> ActivationSpec:
        """The requested model, layers and site."""
        return self._spec

    @property
    def fingerprint(self) -> Fingerprint:
        """Hashes of the loaded model."""
        return self._fingerprint

    @property
    def module(self) -> nn.Module:
        """The truncated model."""
        return self._model.module

    def tokenize(self, conversation: Conversation) -> Windows:
        """Return the conversation's windows. Thread-safe.

        Raises:
            OverlongError: There are more tokens than ``spec.max_tokens``.
        """
        return self._tokenize(conversation)

    @torch.inference_mode()
    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return the activations of all tokens of all windows, one segment a window, in order."""
        lengths = tuple(len(window) for window in windows)
        if self._model.is_packed:
            parts = [self._forward_packed(windows[pack]) for pack in _packs(lengths, self._max_batch_tokens)]
        else:
            parts = self._forward_padded(windows, lengths)
        return Ragged(parts[0] if len(parts) == 1 else torch.cat(parts), lengths)

    @torch.inference_mode()
    def from_hidden_states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the activations of tokens whose residual stream is known, shape [tokens, width].

        Args:
            hidden: ``hidden_states`` at the layers of the spec, shape [tokens, layers, hidden size].
        """
        return self._model.from_hidden_states(hidden.to(self._model.device))

    def _forward_packed(self, windows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the activations of all tokens, shape [tokens, width]; no window sees another."""
        packing = Packing(tuple(len(window) for window in windows))
        ids = torch.tensor([list(chain.from_iterable(windows))])
        device = self._model.device
        return self._model(
            input_ids=ids.to(device), position_ids=packing.position_ids().to(device), packing=packing
        ).squeeze(0)

    def _forward_padded(self, windows: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[torch.Tensor]:
        """Return the activations of each window, shape [tokens, width].

        Windows of like length share a right-padded forward pass: a causal model never reads the tokens after a token.
        """
        parts: dict[int, torch.Tensor] = {}
        for group in _groups(lengths, self._max_batch_tokens):
            width = max(lengths[i] for i in group)
            padded = [[*windows[i], *[self._pad_id] * (width - lengths[i])] for i in group]
            hidden = self._model(input_ids=torch.tensor(padded).to(self._model.device))
            parts.update((i, hidden[row, : lengths[i]]) for row, i in enumerate(group))
        return [parts[i] for i in range(len(windows))]


def open_tokenizer(spec: ActivationSpec) -> ConversationTokenizer:
    """Return the tokenizer of a base model, without its weights.

    Raises:
        ActivationError: The model cannot be found.
        ConfigError: The window does not fit the model.
        DependencyError: ``package:NAME`` is not installed.
    """
    _, config, tokenizer = _open(spec)
    return _tokenizer(spec, config, tokenizer)


def _open(spec: ActivationSpec) -> tuple[str, Any, Any]:
    """Return where the model is, its configuration and its tokenizer."""
    path = resolve_model(spec.model)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(path, revision=spec.revision)
            tokenizer = AutoTokenizer.from_pretrained(path, revision=spec.revision)
        except (OSError, ValueError) as error:
            raise ActivationError(
                f"base model {spec.model!r} cannot be opened: {error}",
                hint="Give a Hugging Face id, a local folder, or package:NAME",
            ) from error
    return path, config, tokenizer


def _tokenizer(spec: ActivationSpec, config: Any, tokenizer: Any) -> ConversationTokenizer:
    return ConversationTokenizer(tokenizer, window=_resolve_window(spec, config), max_tokens=spec.max_tokens)


def _packs(lengths: Sequence[int], max_tokens: int) -> Iterator[slice]:
    """Yield groups of neighbouring windows within the budget of tokens. A longer window is alone."""
    start = tokens = 0
    for i, length in enumerate(lengths):
        if i > start and tokens + length > max_tokens:
            yield slice(start, i)
            start, tokens = i, 0
        tokens += length
    yield slice(start, len(lengths))


def _groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of windows, shortest first, in groups whose padded size stays within the budget."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[i] > max_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _resolve_window(spec: ActivationSpec, config: Any) -> int:
    positions = int(getattr(config, "max_position_embeddings", _LARGEST_WINDOW))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # One longer window would change the rotary angles of all windows in its batch.
        positions = min(positions, int(rope["original_max_position_embeddings"]))
    if spec.window is not None and spec.window > positions:
        raise ConfigError(
            f"a window of {spec.window} tokens exceeds the model's {positions} positions",
            key="base.window",
            hint=f"Set window to at most {positions}, or leave it out",
        )
    return spec.window or min(positions, _LARGEST_WINDOW)


def hash_weights(model: nn.Module) -> str:
    """Hash names, shapes and an even sample of the values of every weight.

    Fine-tuning moves nearly every value, so a sample tells models apart at a fraction of the cost of reading
    gigabytes.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // _WEIGHT_SAMPLE)
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bar and the report on weights that are left out on purpose."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
