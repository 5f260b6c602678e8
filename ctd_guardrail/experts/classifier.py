"""P(unsafe) from a sequence classifier: the probability of its unsafe label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.config import LocalExpertConfig
from ctd_guardrail.experts.local_model import Ids, LocalModel, padded_batches
from ctd_guardrail.experts.prompt import fingerprint, without_surrogates
from ctd_guardrail.experts.windows import check_length, overlapping

__all__ = ["ClassifierReader"]

_UNSAFE_NAMES: Final = frozenset({"unsafe", "toxic", "harmful", "malicious", "jailbreak", "injection", "hate"})
_SAFE_NAMES: Final = frozenset({"safe", "benign", "harmless", "nontoxic", "nottoxic", "nothate", "normal"})
_GENERIC_NAMES: Final = ("label0", "label1")


class ClassifierReader:
    """Reads a conversation as plain text and looks at one label.

    Softmax over the labels, or a sigmoid of its own for each where the checkpoint is multi-label or has one output.

    Args:
        local: A loaded sequence classifier.
        config: The label and the limits.

    Raises:
        ConfigError: The unsafe label is unknown or ambiguous, or a setting for causal models is given.
    """

    def __init__(self, local: LocalModel, config: LocalExpertConfig) -> None:
        for name in ("completions", "instruction"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"expert {config.model!r} is a classifier, and {name} is for causal language models",
                    key=f"expert.{name}",
                    hint="Remove it; unsafe_label names the label that means unsafe",
                )
        self._local = local
        self._max_tokens = config.max_tokens
        settings = local.model.config
        labels = {int(index): str(name) for index, name in settings.id2label.items()}
        self._label = _unsafe_label(labels, config.unsafe_label)
        self._independent = len(labels) == 1 or settings.problem_type == "multi_label_classification"
        # The model itself looks for this token: decoders to find a text's end, RoBERTa to number its positions.
        self._pad_id: int | None = settings.get_text_config().pad_token_id
        self._prefix, self._suffix = local.encoder.special_tokens()
        self._capacity = local.window - len(self._prefix) - len(self._suffix)
        overlapping((), self._capacity)

    @property
    def identity(self) -> str:
        """What the scores depend on beside model and tokenizer."""
        return fingerprint(str(self._label), str(self._independent), str(self._local.window), "plain text")

    def read(self, conversation: Conversation) -> list[Ids]:
        """Return the windows of a conversation. Thread-safe.

        Raises:
            OverlongError: It has more tokens than allowed.
        """
        text = without_surrogates(conversation.plain_text())
        check_length(len(text), self._max_tokens, characters=True)
        ids = self._local.encoder.text(text)
        check_length(len(ids), self._max_tokens)
        return [(*self._prefix, *piece, *self._suffix) for piece in overlapping(ids, self._capacity)]

    def cost(self, window: Ids) -> int:
        """Return the tokens that a window costs."""
        return len(window)

    @torch.inference_mode()
    def score(self, windows: Sequence[Ids]) -> list[float]:
        """Return P(unsafe) for each window. Runs on the device thread."""
        model: Any = self._local.model
        scores = [0.0] * len(windows)
        for group, batch in padded_batches(windows, pad_id=self._pad_id, device=model.device):
            logits = model(**batch).logits.float()
            p = logits.sigmoid() if self._independent else logits.softmax(-1)
            for i, p_unsafe in zip(group, p[:, self._label].tolist(), strict=True):
                scores[i] = p_unsafe
        return scores


def _unsafe_label(labels: Mapping[int, str], chosen: str | int | None) -> int:
    if chosen is None:
        return _guess_label(labels)
    for index, name in labels.items():
        if chosen in (index, name):
            return index
    raise ConfigError(
        f"the classifier has no label {chosen!r}", key="expert.unsafe_label", hint=f"It has {_listing(labels)}"
    )


def _guess_label(labels: Mapping[int, str]) -> int:
    if len(labels) == 1:
        return next(iter(labels))
    plain = {index: re.sub(r"[^a-z0-9]", "", name.lower()) for index, name in labels.items()}
    named = [index for index, name in plain.items() if name in _UNSAFE_NAMES]
    if len(named) == 1:
        return named[0]
    safe = [index for index, name in plain.items() if name in _SAFE_NAMES]
    if not named and len(labels) == len(_GENERIC_NAMES):
        if len(safe) == 1:
            return next(index for index in labels if index != safe[0])
        if tuple(plain[index] for index in sorted(plain)) == _GENERIC_NAMES:
            return 1
    raise ConfigError(
        "it is not clear which label of the classifier means unsafe",
        key="expert.unsafe_label",
        hint=f"Set it to one of {_listing(labels)}",
    )


def _listing(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{index} ({name})" for index, name in sorted(labels.items()))
