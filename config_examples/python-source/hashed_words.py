"""An activation source of your own: the hash of each word draws a fixed random vector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ctd_guardrail import ActivationSource, ActivationSpec, Conversation, Fingerprint, Ragged

_VECTORS = 1 << 14
_WINDOW = 512


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HashedWords:
    """Reads words without their order. The probes learn which vectors are harmful.

    Args:
        spec: What the policy pins: layers, and the most tokens of a conversation.
        width: Numbers in the vector of one layer.
    """

    def __init__(self, spec: ActivationSpec, width: int) -> None:
        self.spec = spec
        generator = torch.Generator().manual_seed(0)
        self._vectors = torch.randn(_VECTORS, width * len(spec.layers), generator=generator)
        self._window = spec.window or _WINDOW
        # A policy is bound to these hashes, and the rail refuses a source with others.
        self.fingerprint = Fingerprint(
            architecture="HashedWords",
            hidden_size=width,
            window=self._window,
            weights_sha256=_sha256(self._vectors.numpy().tobytes()),
            tokenizer_sha256=_sha256(b"words in lower case"),
            template_sha256=_sha256(b"role: text"),
        )

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], ...]:
        """Return the numbers of the words, a window at a time."""
        words = conversation.plain_text().lower().split() or [""]
        ids = tuple(int(_sha256(word.encode("utf-8", "replace"))[:8], 16) % _VECTORS for word in words)
        return tuple(ids[start : start + self._window] for start in range(0, len(ids), self._window))

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return the vectors of all words, one segment a window."""
        ids = torch.tensor([token for window in windows for token in window])
        return Ragged(self._vectors[ids], tuple(len(window) for window in windows))


def make(spec: ActivationSpec, width: int = 64) -> ActivationSource:
    """Return the source. `spec` comes from `base` or from the policy, the other parameters from `options`."""
    return HashedWords(spec, width)
