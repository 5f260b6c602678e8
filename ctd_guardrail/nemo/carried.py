"""Finds the texts that a call of the main LLM carries, also after a prompt template has changed them."""

from __future__ import annotations

import html
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

__all__ = ["Prompt", "texts_in"]

# A shorter text is searched as a whole word, because its letters also occur inside other words.
_SHORT: Final = 8
# Pieces of a text: both ends of it and of each of its lines, and its consecutive runs of this many letters.
_RUN: Final = 16
# Below this many pieces, looking for each of them is faster than walking along the prompt once.
_FEW: Final = 32
_NO_WORD: Final = re.compile(r"[\W_]+")
_TAG: Final = re.compile(r"<[^<>]*>")
_ESCAPE: Final = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|([abefnrtv0"'\\/]))""")
_ROUNDS: Final = 4


class Prompt:
    """The text of a prompt, and a search for client texts in it.

    Templates escape quotes, newlines and letters, change letter case, and cut long values. So the search compares
    letters and digits only, with and without escapes. A prompt carries a text if it contains one of its pieces.

    Args:
        texts: All texts of the prompt.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        forms = _forms("\n".join(texts))
        self._raw = "\n".join(forms)
        self._letters = "\n".join(map(_letters, forms))
        self._words = "\n".join(f" {_words(form)} " for form in forms)

    def carried(self, texts: Sequence[str]) -> list[str]:
        """Return the texts of which a piece stands in the prompt. The time is linear in their total length."""
        carried: set[int] = set()
        wanted: defaultdict[tuple[str, int], defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for number, text in enumerate(texts):
            for place, piece in _pieces(text):
                wanted[place, len(piece)][piece].add(number)
        for (place, length), numbers in wanted.items():
            for piece in _found(numbers, length, getattr(self, place)):
                carried |= numbers[piece]
        return [texts[number] for number in sorted(carried)]

    def holds(self, text: str) -> bool:
        """Return whether all of a text stands in the prompt, word for word."""
        return f" {_words(text)} " in self._words


def texts_in(value: object) -> list[str]:
    """Return all texts inside a value, the keys of mappings among them, without those that are blank.

    A value that is not JSON is read as a template would print it. A value that contains itself is read once.
    """
    texts: list[str] = []
    # It keeps the objects it has seen alive, because a new object may get the identity of a deleted one.
    seen: dict[int, object] = {}
    # A stack and no recursion: the sender chooses the depth.
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            if each.strip():
                texts.append(each)
        elif isinstance(each, Mapping | list | tuple | set | frozenset):
            if id(each) not in seen:
                seen[id(each)] = each
                inner = [part for pair in each.items() for part in pair] if isinstance(each, Mapping) else list(each)
                waiting += reversed(inner)
        elif isinstance(each, bytes | bytearray):
            texts.append(each.decode(errors="replace"))
        elif hasattr(each, "to_dict"):
            waiting.append(each.to_dict())
        elif each is not None and not isinstance(each, bool | int | float):
            texts.append(str(each))
    return texts


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a text, each with the place where it is searched."""
    for form in _forms(text):
        letters = _letters(form)
        if len(letters) >= _SHORT:
            for line in {letters, *map(_letters, form.splitlines())}:
                if len(line) >= _SHORT:
                    yield "_letters", line[:_SHORT]
                    yield "_letters", line[-_SHORT:]
            for start in range(0, len(letters) - _RUN + 1, _RUN):
                yield "_letters", letters[start : start + _RUN]
        elif letters:
            yield "_words", f" {_words(form)} "
        elif not form.isascii():
            # A text without letters and digits can carry meaning too.
            yield "_raw", form.strip()[:_RUN]


def _found(pieces: Mapping[str, object], length: int, text: str) -> Iterable[str]:
    if len(pieces) <= _FEW:
        return [piece for piece in pieces if piece in text]
    return {piece for start in range(len(text) - length + 1) if (piece := text[start : start + length]) in pieces}


def _forms(text: str) -> list[str]:
    """Return a text as it is, and also without escapes and tags if it has any."""
    forms = dict.fromkeys([text, bare := _unescaped(text)])
    if "<" in bare:
        forms[_TAG.sub("", bare)] = None
    return list(forms)


def _unescaped(text: str) -> str:
    """Undo the escapes of JSON, Python, HTML and URLs, also one inside of another."""
    for _ in range(_ROUNDS):
        before = text
        if "\\" in text:
            text = _ESCAPE.sub(_meant, text)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "&" in text:
            text = html.unescape(text)
        if "%" in text:
            text = unquote(text)
        if text == before:
            break
    return text


def _meant(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code is None:
        return escape[4] if escape[4] in "\"'\\/" else " "
    return chr(int(code, 16)) if int(code, 16) <= sys.maxunicode else " "


def _letters(text: str) -> str:
    return _NO_WORD.sub("", text.casefold())


def _words(text: str) -> str:
    return _NO_WORD.sub(" ", text.casefold()).strip()
