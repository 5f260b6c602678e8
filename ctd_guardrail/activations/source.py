"""The protocol of whatever computes activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.text.conversation import Conversation

if TYPE_CHECKING:
    from ctd_guardrail.probes.ragged import Ragged

__all__ = ["ActivationSource", "Windows"]

Windows = tuple[tuple[int, ...], ...]
"""Token ids of one conversation, cut into forward windows without a gap."""


@runtime_checkable
class ActivationSource(Protocol):
    """Turns conversations into token activations of one base model at one site."""

    @property
    def spec(self) -> ActivationSpec:
        """The requested model, layers and site."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Hashes of the loaded model."""
        ...

    def tokenize(self, conversation: Conversation) -> Windows:
        """Return the windows of a conversation. Thread-safe; needs no device.

        Raises:
            OverlongError: There are more tokens than ``spec.max_tokens``.
        """
        ...

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Return the activations of all tokens of all windows, one segment a window, in order.

        Blocking, and not thread-safe: only the device thread calls it.
        """
        ...
