"""What the base model says about one conversation, and who can say it."""

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
    """One conversation, read.

    Attributes:
        rows: What the head made of each window, shape [windows, K].
        queue_ms: From handing the conversation over until work on it started, milliseconds: its batch on the device
            thread, or its request to a serving engine.
        forward_ms: Time of its batch on the device thread, or of its request, milliseconds; conversations of one batch
            share it.
    """

    rows: Float32Array
    queue_ms: float
    forward_ms: float


class Scorer(Protocol):
    """The base model as the cascade sees it: in this process, or behind a serving engine.

    It may be called from several event loops and threads at once.
    """

    @property
    def spec(self) -> ActivationSpec:
        """What is read."""
        ...

    async def run(self, conversation: Conversation, head: Probes) -> Scored:
        """Return (p, d) of each window of a conversation, shape [windows, 2], without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationError: The conversation could not be read.
        """
        ...
