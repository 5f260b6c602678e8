"""Whether a call of the main LLM carries a text, whatever a prompt template has made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["Prompt", "prompt_texts"]

_PIECE: Final = 64
# A text shorter than this is looked for as a word of its own: its letters stand inside of other words too.
_SHORT: Final = 8
_NO_WORD: Final = re.compile(r"[\W_]+")


class Prompt:
    """The text of a prompt, and which texts of others it carries.

    Templates escape quotes and newlines, change letter case, and cut long values. So only letters and digits are
    compared, and a text is carried where one of its pieces is.

    Args:
        texts: All texts of the prompt.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        joined = "\n".join(texts)
        self._letters = _letters(joined)
        self._words = f" {_NO_WORD.sub(' ', joined.casefold())} "

    def carries(self, text: str) -> bool:
        """Return whether a piece of the text stands in the prompt."""
        letters = _letters(text)
        if not letters:
            return False
        if len(letters) < _SHORT:
            return f" {_NO_WORD.sub(' ', text.casefold()).strip()} " in self._words
        lines = [line for line in map(_letters, text.splitlines()) if len(line) >= _SHORT] or [letters]
        pieces = (line[start : start + _PIECE] for line in lines for start in range(0, len(line), _PIECE))
        return any(piece in self._letters for piece in pieces if len(piece) >= _SHORT)


def prompt_texts(prompt: Any) -> list[str]:
    """Return the texts of a prompt: one string, or messages as mappings or as NeMo's own objects."""
    if isinstance(prompt, str):
        return [prompt]
    if hasattr(prompt, "to_dict"):
        prompt = prompt.to_dict()
    if isinstance(prompt, dict):
        return [text for value in prompt.values() for text in prompt_texts(value)]
    return [text for item in prompt for text in prompt_texts(item)] if isinstance(prompt, list | tuple) else []


def _letters(text: str) -> str:
    return _NO_WORD.sub("", text.casefold())
