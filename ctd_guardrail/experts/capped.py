"""An expert with a cap on its calls."""

from __future__ import annotations

from collections.abc import Callable

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ExpertCapError
from ctd_guardrail.experts.protocol import Expert, ExpertScore

__all__ = ["CappedExpert", "countdown"]


class CappedExpert:
    """Asks an expert as long as calls are left.

    Args:
        expert: The expert.
        take: Takes one call and says whether there was one left.

    Attributes:
        uncapped: The expert.
    """

    def __init__(self, expert: Expert, take: Callable[[], bool]) -> None:
        self.uncapped = expert
        self._take = take

    @property
    def identity(self) -> str:
        """The expert's own: a cap changes no score."""
        return self.uncapped.identity

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Raises:
            ExpertCapError: No call is left.
            ExpertError: The expert gave no usable score.
        """
        if not self._take():
            raise ExpertCapError(
                "the cap on calls of the expert is used up", hint="Raise `cap`, or see why so much is delegated"
            )
        score = await self.uncapped.score(conversation)
        for _ in range(score.attempts - 1):  # what was tried again was paid for as well
            self._take()
        return score

    async def aclose(self) -> None:
        """Close the expert."""
        await self.uncapped.aclose()


def countdown(calls: int) -> Callable[[], bool]:
    """Return a function that says True so many times and False from then on."""
    left = iter(range(calls))
    return lambda: next(left, None) is not None
