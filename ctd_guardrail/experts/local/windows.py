"""Long texts in overlapping windows, so that nothing is cut off unread."""

from __future__ import annotations

from typing import Final

from ctd_guardrail.errors import ConfigError, OverlongError

__all__ = ["check_length", "overlapping"]

# A statement that one window's end cuts in two stands whole in the next.
_OVERLAP: Final = 8
# Text with more characters for each allowed token is refused unread: tokenising it would be the attack.
_CHARACTERS_PER_TOKEN: Final = 16


def overlapping(ids: tuple[int, ...], capacity: int) -> list[tuple[int, ...]]:
    """Cut token ids into windows that share an eighth with their neighbours; at least one, even if it is empty.

    Raises:
        ConfigError: The window leaves no room for text beside special tokens and prompt.
    """
    if capacity < 1:
        raise ConfigError(
            "the window leaves no room for the conversation", key="expert.window", hint="Raise expert.window"
        )
    overlap = capacity // _OVERLAP
    starts = range(0, max(len(ids) - overlap, 1), capacity - overlap)
    return [ids[start : start + capacity] for start in starts]


def check_length(length: int, max_tokens: int, *, characters: bool = False) -> None:
    """Refuse a conversation that is too long to be read.

    Args:
        length: Its tokens, or its characters before it is tokenised.
        max_tokens: The limit in tokens.
        characters: Whether ``length`` counts characters.

    Raises:
        OverlongError: It is longer than the limit.
    """
    if length > max_tokens * (_CHARACTERS_PER_TOKEN if characters else 1):
        raise OverlongError(
            f"the conversation has more than the {max_tokens} tokens that the expert reads",
            hint="Raise expert.max_tokens, or shorten the input; on_failure decides about it",
        )
