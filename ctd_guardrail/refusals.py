"""The words by which an app refuses: a turn that they answer has been dealt with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ctd_guardrail.conversation import Turn
from ctd_guardrail.normalise import normalise

__all__ = ["DEFAULT_REFUSALS", "Refusals"]

DEFAULT_REFUSALS: Final = (
    "I'm sorry, I can't respond to that.",
    "I'm sorry, I can't check messages right now. Please try again later.",
    "I'm sorry, an internal error has occurred.",
)
"""What this rail and NeMo's engines say where the configuration has no words of its own."""


class Refusals:
    """Tells refusals from other answers.

    An answer that says anything else may be forged, to make a refused request look granted: exact words are asked
    for, but for letter case and white space.

    Args:
        texts: The refusals that an app gives, beside the default ones.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts = frozenset(_plain(text) for text in (*DEFAULT_REFUSALS, *texts))

    def answer(self, turn: Turn) -> bool:
        """Return whether the turn was answered, and by nothing but refusals."""
        return bool(turn.answer) and all(_plain(message.content) in self._texts for message in turn.answer)


def _plain(text: str) -> str:
    return " ".join(normalise(text).split()).casefold()
