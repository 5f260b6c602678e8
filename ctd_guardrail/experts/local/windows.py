"""Overlapping windows of long texts, so that the model reads every token."""

from __future__ import annotations

from typing import Final

from ctd_guardrail.errors import ConfigError, OverlongError

__all__ = ["MAX_TOKENS", "check_length", "overlapping"]

MAX_TOKENS: Final = 32_768
"""Tokens that an expert reads. A longer conversation would take seconds and hold up all others."""

# A sentence that the end of one window cuts is whole in the next.
_OVERLAP: Final = 8
# Text with more characters for each allowed token is refused unread: tokenising it would be the attack.
_CHARACTERS_PER_TOKEN: Final = 16


def overlapping(ids: tuple[int, ...], capacity: int) -> list[tuple[int, ...]]:
    """Cut token ids into windows that share an eighth with their neighbours; at least one, even if it is empty.

    Raises:
        ConfigError: Special tokens and prompt leave no room for text.
    """
    if capacity < 1:
        raise ConfigError(
            "the prompt leaves no room for the conversation", key="expert.model", hint="Use a model with more positions"
        )
    overlap = capacity // _OVERLAP
    starts = range(0, max(len(ids) - overlap, 1), capacity - overlap)
    return [ids[start : start + capacity] for start in starts]


def check_length(length: int, *, characters: bool = False) -> None:
    """Refuse a conversation that is too long to be read.

    Args:
        length: Its tokens, or its characters before it is tokenised.
        characters: Whether ``length`` counts characters.

    Raises:
        OverlongError: It is longer than the limit.
    """
    if length > MAX_TOKENS * (_CHARACTERS_PER_TOKEN if characters else 1):
        raise OverlongError(
            f"the conversation has more than the {MAX_TOKENS} tokens that the expert reads",
            hint="Shorten the input",
        )
