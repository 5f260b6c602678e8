"""The seam to whatever judges the hard cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ctd_guardrail.text.conversation import Conversation

__all__ = ["Expert", "ExpertScore"]


@dataclass(frozen=True, slots=True)
class ExpertScore:
    """An expert's answer.

    Attributes:
        p_unsafe: P(unsafe) in [0, 1]. Experts that only say yes or no give 0.0 or 1.0.
        attempts: Calls that were made to get it; a budget in calls counts these, not answers.
        tokens: Tokens billed over all attempts, prompt and completion; None where the expert does not say.
    """

    p_unsafe: float
    attempts: int = 1
    tokens: int | None = None


@runtime_checkable
class Expert(Protocol):
    """Anything that scores a conversation.

    The same object scores the training data offline and the delegated inputs online. It may be called from several
    event loops and threads at once.
    """

    @property
    def identity(self) -> str:
        """What the scores depend on (kind, model, prompt), and nothing else: no address, no secret.

        Calibration records it; a rail that is configured with another identity refuses to start.
        """
        ...

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Raises:
            ExpertTimeoutError: No answer before the deadline.
            ExpertUnavailableError: Refused, unreachable, rate-limited or failing.
            ExpertVerdictError: The answer is not a verdict.
            OverlongError: The conversation is longer than this expert reads.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and threads. Calling it twice is harmless."""
        ...
