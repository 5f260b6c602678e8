"""The protocol of an expert, and its score."""

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
        attempts: Calls that were made for it; a budget in calls counts calls, not answers.
        tokens: Tokens billed over all attempts, prompt and completion; None if the expert does not report them.
    """

    p_unsafe: float
    attempts: int = 1
    tokens: int | None = None


@runtime_checkable
class Expert(Protocol):
    """Anything that scores a conversation.

    The same object scores the training data offline and the delegated inputs online. It is called from several event
    loops and threads at once. It needs no deadline and no limit of its own:
    :class:`~ctd_guardrail.experts.bounded.bounded_expert.BoundedExpert` adds both.
    """

    @property
    def identity(self) -> str:
        """Everything that the scores depend on (kind, model, prompt), without addresses and secrets.

        Calibration records it. A rail whose expert has another identity refuses to start.
        """
        ...

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Raises:
            ExpertUnavailableError: Refused, unreachable, rate-limited or failing.
            ExpertVerdictError: The answer is not a verdict.
            OverlongError: The conversation is longer than this expert reads.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and threads. Calling it twice is harmless."""
        ...
