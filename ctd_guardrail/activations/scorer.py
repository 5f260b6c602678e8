"""Scores of one conversation, and the protocol of whatever computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.text.conversation import Conversation

if TYPE_CHECKING:
    from ctd_guardrail.probes.probes import Probes

__all__ = ["Scored", "Scorer"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the windows of one conversation, and their timing.

    Attributes:
        rows: Output of the head for each window, shape [windows, K].
        queue_ms: Milliseconds from the call until the start of its batch on the device thread, or of its request to a
            serving engine.
        forward_ms: Milliseconds of its batch on the device thread, or of its request. Conversations of one batch share
            it.
    """

    rows: Float32Array
    queue_ms: float
    forward_ms: float


class Scorer(Protocol):
    """The base model as the cascade sees it: in this process, or behind a serving engine.

    Several event loops and threads may call it at the same time.
    """

    @property
    def spec(self) -> ActivationSpec:
        """Model, layers and site of the activations."""
        ...

    async def run(self, conversation: Conversation, head: Probes) -> Scored:
        """Return (p, d) of each window of a conversation, shape [windows, 2], without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationError: The scores cannot be computed.
        """
        ...
