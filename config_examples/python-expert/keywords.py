"""An expert of your own: it counts words of a list. A service of your company would be called in its place."""

from __future__ import annotations

import hashlib
import re

from ctd_guardrail import Conversation, Expert, ExpertScore

_WORD = re.compile(r"\w+")


class KeywordExpert:
    """Scores a conversation by the listed words in its last message.

    Args:
        words: The words.
        each: How much of the remaining doubt one word removes.
    """

    def __init__(self, words: list[str], each: float) -> None:
        self._words = frozenset(word.lower() for word in words)
        self._each = each
        # All that a score depends on stands in the identity: another list needs another calibration.
        content = f"{sorted(self._words)} {each}"
        self.identity = f"keywords:{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe)."""
        last = conversation.messages[-1].content.lower()
        found = sum(word in self._words for word in _WORD.findall(last))
        return ExpertScore(1.0 - (1.0 - self._each) ** found)

    async def aclose(self) -> None:
        """Release nothing: there is no connection."""


def make(words: list[str], each: float = 0.6) -> Expert:
    """Return the expert. The parameters are the `options` of the configuration."""
    return KeywordExpert(words, each)
