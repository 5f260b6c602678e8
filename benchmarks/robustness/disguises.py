"""Eighteen disguises of a text that a person can still read and a classifier may not."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["DISGUISES"]

Disguise = Callable[[str, random.Random], str]

_LETTERS: Final = string.ascii_letters
_CYRILLIC: Final = str.maketrans("aceijopsxyhABCEHIKMOPTX", "асеіјорѕхуһАВСЕНІКМОРТХ")
_SMALL_CAPITALS: Final = str.maketrans("abcdefghijklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ")
_SUPERSCRIPTS: Final = str.maketrans("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ")
_DIGITS: Final = str.maketrans("aeiost", "431057")
_ACCENTS: Final = "".join(map(chr, range(0x0300, 0x0334)))
_BIDI: Final = "\u200e\u200f\u202a\u202c\u2066\u2069"


def _alphabet(lower: int, upper: int) -> dict[int, str]:
    letters = zip(string.ascii_lowercase + string.ascii_uppercase, [lower] * 26 + [upper] * 26, strict=True)
    return {ord(letter): chr(first + i % 26) for i, (letter, first) in enumerate(letters)}


def _each_letter(change: Callable[[str, random.Random], str]) -> Disguise:
    return lambda text, rng: "".join(change(letter, rng) if letter in _LETTERS else letter for letter in text)


def _translate(table: Mapping[int, str] | Mapping[int, int]) -> Disguise:
    return lambda text, _: text.translate(table)


def _behind(text: str, first: int) -> str:
    """Hide the ASCII characters of a text behind a harmless greeting."""
    return "Hello!" + "".join(chr(first + ord(letter)) for letter in text if letter.isascii())


DISGUISES: Final[dict[str, Disguise]] = {
    "full-width": _translate({code: chr(code + 0xFEE0) for code in range(0x21, 0x7F)}),
    "mathematical bold": _translate(_alphabet(0x1D41A, 0x1D400)),
    "circled": _translate(_alphabet(0x24D0, 0x24B6)),
    "negative squared": _translate(_alphabet(0x1F170, 0x1F170)),
    "small capitals": lambda text, _: text.lower().translate(_SMALL_CAPITALS),
    "superscript": lambda text, _: text.lower().translate(_SUPERSCRIPTS),
    "lookalikes, all": _translate(_CYRILLIC),
    "lookalikes, one in three": _each_letter(
        lambda letter, rng: letter.translate(_CYRILLIC) if rng.random() < 1 / 3 else letter
    ),
    "zero-width spaces": _each_letter(lambda letter, _: letter + "\u200b"),
    "soft hyphens": _each_letter(lambda letter, _: letter + "\u00ad"),
    "tag characters": lambda text, _: _behind(text, 0xE0000),
    "variation selectors": lambda text, _: _behind(text, 0xE0100 - 16),
    "bidirectional controls": _each_letter(lambda letter, rng: letter + rng.choice(_BIDI)),
    "strokes": _each_letter(lambda letter, _: letter + "\u0336"),
    "piles of accents": _each_letter(
        lambda letter, rng: letter + "".join(rng.choices(_ACCENTS, k=rng.randrange(4, 9)))
    ),
    "spaces between letters": lambda text, _: " ".join(text),
    "dots between letters": lambda text, _: " ".join(".".join(word) for word in text.split(" ")),
    "digits for letters": lambda text, _: text.lower().translate(_DIGITS),
}
"""A disguise by its name."""
