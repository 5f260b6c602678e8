"""Turn letters that look like Latin ones into Latin ones, where a text is Latin otherwise."""

from __future__ import annotations

import re
import string
from typing import Final

from ctd_guardrail.text.confusables import LOOKALIKES

__all__ = ["STYLED", "STYLED_LETTERS", "fold_lookalikes"]

STYLED_LETTERS: Final = {
    **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɡɑ", "abcdefghijklmnoprstuvwyzga", strict=True)),
    # Negative circled and negative squared letters, which have no compatibility form.
    **{chr(first + i): letter for first in (0x1F150, 0x1F170) for i, letter in enumerate(string.ascii_uppercase)},
}
"""Styled letter to plain letter. No language needs the styled ones."""

STYLED: Final = re.compile("[ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɡɑ\U0001f150-\U0001f169\U0001f170-\U0001f189]")
"""Matches one styled letter."""

_TABLE: Final = str.maketrans(LOOKALIKES)
_LOOKALIKE: Final = re.compile(f"[{''.join(LOOKALIKES)}]")
_WORD: Final = re.compile("[\\w\u0300-\u036f]+")
_ACCENT: Final = re.compile("[\u0300-\u036f]")
# Letters of Cyrillic, Armenian, Cherokee, Lisu and Coptic. Not Greek: Latin text uses its letters as symbols.
_OTHER: Final = re.compile("[\u0400-\u058f\u13a0-\u13ff\u2c80-\u2cff\ua4d0-\ua4ff\uab70-\uabbf]")
_LATIN: Final = re.compile("[A-Za-z]")


def fold_lookalikes(text: str) -> str:
    """Return a decomposed text with its lookalikes in Latin.

    A word is folded if it has a Latin letter and becomes all Latin. Words that consist of lookalikes are folded if
    most letters of the text are Latin and all others are lookalikes. A passage in another script would also have
    letters that do not look Latin.
    """
    if not _LOOKALIKE.search(text):
        return text
    folded = _WORD.sub(_fold_word, text)
    others = _OTHER.findall(folded)
    if not others or not all(letter in LOOKALIKES for letter in others):
        return folded
    if len(_LATIN.findall(folded)) < len(others):
        return folded
    # Fold again: Greek letters may now stand in Latin words.
    return _WORD.sub(_fold_word, _OTHER.sub(lambda match: LOOKALIKES[match[0]], folded))


def _fold_word(match: re.Match[str]) -> str:
    word = match[0]
    if word.isascii() or not _LATIN.search(word):
        return word
    folded = word.translate(_TABLE)
    return folded if _ACCENT.sub("", folded).isascii() else word
