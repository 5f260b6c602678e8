"""P(unsafe) from a sequence classifier: the probability of its unsafe labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from ctd_guardrail.activations.tokens import Ids
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.local.model import LocalModel, padded_batches
from ctd_guardrail.experts.local.windows import check_length, overlapping
from ctd_guardrail.experts.prompt import fingerprint, without_surrogates
from ctd_guardrail.text.conversation import Conversation

__all__ = ["ClassifierReader"]

_UNSAFE_NAMES: Final = frozenset({"unsafe", "toxic", "harmful", "malicious", "jailbreak", "injection", "hate"})
_SAFE_NAMES: Final = frozenset({"safe", "benign", "harmless", "nontoxic", "nottoxic", "nothate", "normal"})
_GENERIC_NAMES: Final = ("label0", "label1")


class ClassifierReader:
    """Classifies a conversation as plain text and reads the unsafe labels.

    P(unsafe) is the sum of the softmax over the unsafe labels. Multi-label checkpoints and those with one output have a
    sigmoid for each label, and their labels do not exclude each other. Then P(unsafe) is the highest of them.

    Args:
        local: A loaded sequence classifier.
        config: The label and the limits.

    Raises:
        ConfigError: An unsafe label is unknown, ambiguous or named as the safe one, or a setting for causal models is
            given.
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
        settings = local.model.config
        labels = {int(index): str(name) for index, name in settings.id2label.items()}
        self._unsafe = _unsafe_labels(labels, config.unsafe_label)
        self._independent = len(labels) == 1 or settings.problem_type == "multi_label_classification"
        # The model itself looks for this token: decoders to find a text's end, RoBERTa to number its positions.
        self._pad_id: int | None = settings.get_text_config().pad_token_id
        self._prefix, self._suffix = local.encoder.special_tokens()
        self._capacity = local.window - len(self._prefix) - len(self._suffix)
        overlapping((), self._capacity)

    @property
    def identity(self) -> str:
        """What the scores depend on beside model and tokenizer."""
        return fingerprint(
            ",".join(map(str, self._unsafe)), str(self._independent), str(self._local.window), "plain text"
        )

    def read(self, conversation: Conversation) -> list[Ids]:
        """Return the windows of a conversation. Thread-safe.

        Raises:
            OverlongError: It has more tokens than allowed.
        """
        text = without_surrogates(conversation.plain_text())
        check_length(len(text), characters=True)
        ids = self._local.encoder.text(text)
        check_length(len(ids))
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
            p = p[:, list(self._unsafe)]
            p_unsafe = p.amax(-1) if self._independent else p.sum(-1)
            for i, score in zip(group, p_unsafe.tolist(), strict=True):
                scores[i] = min(score, 1.0)
        return scores


def _unsafe_labels(labels: Mapping[int, str], chosen: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    """Return the indices of the labels that mean unsafe, in order."""
    if chosen is None:
        return _guess(labels)
    names = [chosen] if isinstance(chosen, str | int) else chosen
    indices = sorted({_index(labels, name) for name in names})
    safe = [index for index in indices if _plain(labels[index]) in _SAFE_NAMES]
    if safe or (len(indices) == len(labels) > 1):
        problem = f"label {labels[safe[0]]!r} means safe" if safe else "unsafe_label names every label"
        raise ConfigError(problem, key="expert.unsafe_label", hint=_choices(labels))
    return tuple(indices)


def _index(labels: Mapping[int, str], chosen: str | int) -> int:
    for index, name in labels.items():
        if chosen in (index, name):
            return index
    raise ConfigError(f"the classifier has no label {chosen!r}", key="expert.unsafe_label", hint=_choices(labels))


def _guess(labels: Mapping[int, str]) -> tuple[int, ...]:
    """Return the labels that mean unsafe by their names, if every name is clear."""
    if len(labels) == 1:
        return tuple(labels)
    unsafe = [index for index, name in labels.items() if _plain(name) in _UNSAFE_NAMES]
    safe = [index for index, name in labels.items() if _plain(name) in _SAFE_NAMES]
    others = [index for index in labels if index not in unsafe and index not in safe]
    if unsafe and safe and not others:
        return tuple(sorted(unsafe))
    # With two labels, the meaning of one defines that of the other.
    if len(labels) == len(_GENERIC_NAMES):
        if len(unsafe) == 1 and not safe:
            return tuple(unsafe)
        if len(safe) == 1:
            return tuple(others)
        if tuple(_plain(labels[index]) for index in sorted(labels)) == _GENERIC_NAMES:
            return (1,)
    raise ConfigError(
        "it is not clear which labels of the classifier mean unsafe", key="expert.unsafe_label", hint=_choices(labels)
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _choices(labels: Mapping[int, str]) -> str:
    listing = ", ".join(
        f"{index} ({name})" for index, name in sorted(labels.items()) if _plain(name) not in _SAFE_NAMES
    )
    return f"Set it to one of these, or to a list of all that mean unsafe: {listing}"
