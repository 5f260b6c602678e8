"""Activations from a Hugging Face model in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ctd_guardrail.activations.models import resolve_model
from ctd_guardrail.activations.ragged import Ragged
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.activations.tokens import ConversationTokenizer
from ctd_guardrail.activations.truncated import TruncatedModel
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ActivationError, ConfigError

__all__ = ["HuggingFaceSource", "hash_weights", "pick_device", "quiet_transformers"]

_LARGEST_WINDOW: Final = 4096
_WEIGHT_SAMPLE: Final = 1024


def pick_device(device: str) -> str:
    """Return the device to use: ``auto`` becomes ``cuda`` where there is one, else ``cpu``."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


class HuggingFaceSource:
    """An :class:`~ctd_guardrail.activations.source.ActivationSource` on transformers and torch.

    Only the blocks below the deepest layer are kept, and no language-model head is loaded, so memory and time are
    layer / depth of the base model. The result equals the full model's ``hidden_states[layer]`` (``residual``), or
    the output of that block's input norm (``input_norm``), for several layers side by side.

    Args:
        spec: Model, layers, site and dtype.
        device: A torch device, or ``auto``.
        max_batch_tokens: Padded tokens in one forward pass.

    Raises:
        ActivationError: The model cannot be found or loaded, or its architecture is not supported.
        ConfigError: A layer or the site does not exist in this model.
        DependencyError: ``package:NAME`` is not installed.
    """

    def __init__(self, spec: ActivationSpec, *, device: str = "auto", max_batch_tokens: int = 4096) -> None:
        self._spec = spec
        self._device = torch.device(pick_device(device))
        self._max_batch_tokens = max_batch_tokens
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
            self._model = TruncatedModel(path, spec, config)
        self._model.module.to(self._device)
        window = _resolve_window(spec, config)
        self._tokenize = ConversationTokenizer(tokenizer, window=window, max_tokens=spec.max_tokens)
        self._pad_id = int(tokenizer.pad_token_id or 0)
        self._fingerprint = Fingerprint(
            architecture=type(self._model.module).__name__,
            hidden_size=int(config.hidden_size),
            window=window,
            weights_sha256=hash_weights(self._model.module),
            tokenizer_sha256=self._tokenize.tokenizer_sha256,
            template_sha256=self._tokenize.template_sha256,
        )

    @property
    def spec(self) -> ActivationSpec:
        """What was asked for."""
        return self._spec

    @property
    def fingerprint(self) -> Fingerprint:
        """What was loaded."""
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
        """Return the activations of all tokens of all windows, one segment a window, in order.

        Windows of like length share a right-padded forward pass. A causal model never looks at the padding behind
        it; an encoder gets a mask.
        """
        lengths = tuple(len(window) for window in windows)
        parts: list[torch.Tensor | None] = [None] * len(windows)
        for group in _groups(lengths, self._max_batch_tokens):
            hidden = self._forward([windows[i] for i in group])
            for row, i in enumerate(group):
                parts[i] = hidden[row, : lengths[i]]
        return Ragged(torch.cat([part for part in parts if part is not None]), lengths)

    def _forward(self, windows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        width = max(len(window) for window in windows)
        ids = torch.tensor([[*window, *[self._pad_id] * (width - len(window))] for window in windows])
        arguments: dict[str, Any] = {"input_ids": ids.to(self._device)}
        if self._model.is_causal:
            # A cache would be filled for nothing.
            arguments["use_cache"] = False
        elif any(len(window) < width for window in windows):
            mask = torch.tensor([[1] * len(window) + [0] * (width - len(window)) for window in windows])
            arguments["attention_mask"] = mask.to(self._device)
        return self._model(**arguments)


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
    """Keep the report on weights that are left out on purpose, and the progress bar, off the user's screen."""
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
