r"""The normal form of a text: probes and expert read it in place of the exact characters.

Unicode has many ways to hide a word or to change its letters. Examples are tag characters, zero-width spaces, Cyrillic
letters that look Latin, and bold, circled and spaced-out letters. A person and a large model still read the word; a
probe reads rare tokens. So every text is normalised before it is judged, offline and online. The main LLM gets the
original:

- compatibility forms become the characters they stand for (NFKC): full-width, bold, circled, ligatures;
- hidden text is shown: tag characters, and bytes in runs of variation selectors, become the ASCII that they spell;
- characters without a glyph go: zero-width spaces, fillers, bidirectional controls, other controls, selectors;
- joiners stay where they carry meaning, between two characters of a joining script or two emoji;
- strokes through letters and piles of accents go; no orthography puts four of them on one letter;
- letters that stand alone with one separator between them are joined to a word, where a text has four or more in a
  row;
- lookalikes of other scripts become Latin in words that are Latin otherwise (:mod:`ctd_guardrail.text.lookalikes`).

:func:`normalise` takes any string, also with lone surrogates. Its result is its own normal form, and at most 18 times
as long (the largest expansion of NFKC). Characters that are newer than Unicode 14 may have another normal form under a
newer Python. Some disguises stay, because no rule tells them from plain text: digits for letters, rot13, base64, and
reversed or misspelt words.
"""

from __future__ import annotations

import re
from typing import Final
from unicodedata import combining
from unicodedata import normalize as to_form

from ctd_guardrail.text.lookalikes import STYLED, STYLED_LETTERS, fold_lookalikes

__all__ = ["NORMALISER", "normalise"]

NORMALISER: Final = "1"
"""Version of the normal form. A policy runs only with the normaliser that read its calibration rows."""

_UNSEEN: Final = "\ufffd"
"""Stands for a text whose characters are all hidden: the text was not blank, so it has to be judged."""

# Tab, line feed and carriage return are text.
_ASCII_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {0x09, 0x0A, 0x0D})
# The controls of C0 and C1, Default_Ignorable_Code_Point without joiners, line separators, interlinear annotation.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_BREAKS: Final = "\x0b\x0c\x85\u2028\u2029"
_BLACK_FLAG: Final = "\U0001f3f4"
# The flags of England, Scotland and Wales are written with tag characters.
_FLAGS: Final = frozenset(
    "".join(chr(0xE0000 + ord(letter)) for letter in f"{name}\x7f") for name in ("gbeng", "gbsct", "gbwls")
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TAGS: Final = range(0xE0000, 0xE0080)
# Variation selectors spell bytes: the first block 0 to 15, the second one 16 to 255.
_SELECTORS: Final = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))

# Scripts with joining or conjuncts, from Hebrew to Georgian and from Khmer to Mongolian, and symbols and emoji.
_JOINING: Final = "\u0590-\u10ff\u1780-\u18af\u2190-\u2bff\U0001f000-\U0001faff"
_JOINER: Final = re.compile("[\u200c\u200d]")
_STRAY_JOINER: Final = re.compile(f"(?<![{_JOINING}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINING}])")

# Accents of no particular script. Unicode sorts a run of them in quadratic time, so long runs are cut first.
_ACCENTS: Final = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_ACCENT_RUN: Final = re.compile(f"[{_ACCENTS}]+")
_STROKE: Final = re.compile(
    "[\u0334-\u0338\u0488\u0489\u20d2\u20d3\u20d8-\u20da\u20dd-\u20e0\u20e4-\u20e6\u20ea\u20eb]"
)
_MOST_ACCENTS: Final = 3
_MOST_MARKS: Final = 32
_LONG_RUN: Final = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_MARKS + 1},}}")

# Letters of Latin and of the scripts with lookalikes: a folded letter still matches.
_LETTER: Final = "[A-Za-z\u0370-\u0482\u048a-\u058f\u13a0-\u13ff\u2c80-\u2cff\ua4d0-\ua4ff\uab70-\uabbf]"
_SEPARATED: Final = rf"(?<!\w){_LETTER}([-._*|~ ]){_LETTER}"
_MAYBE_SPACED_OUT: Final = re.compile(rf"([-._*|~ ]){_LETTER}\1{_LETTER}\1{_LETTER}(?!\w)")
_SPACED_OUT: Final = re.compile(rf"{_SEPARATED}(?:\1{_LETTER}){{2,}}(?!\w)")
# More letters than this are several words. Joined, they would be tokens that no model knows.
_LONGEST_WORD: Final = 24
_SPACED: Final = re.compile(rf"{_SEPARATED}(?:\1{_LETTER})*(?!\w)")

# Thai and Lao AM: NFKC splits the letter, but texts write it as one.
_VOWELS: Final = (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))


def normalise(text: str) -> str:
    """Return the normal form of any string."""
    if text.isascii() and _is_plain(text):
        return text
    shown = text
    if _SURROGATE.search(shown):
        # Two matching halves become the character that they encode.
        shown = shown.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    shown = _decompose(_HIDDEN.sub(_reveal, shown))
    shown = _ACCENT_RUN.sub(_without_disguise, shown)
    if _is_spaced_out(shown):
        # Long runs first: in `I h.a.v.e` the second letter belongs to the third.
        shown = _SPACED.sub(_join, _SPACED_OUT.sub(_join, shown))
    shown = to_form("NFC", fold_lookalikes(shown))
    for parts, whole in _VOWELS:
        shown = shown.replace(parts, whole)
    return shown if shown.strip() or not text.strip() else _UNSEEN


def _is_plain(text: str) -> bool:
    raw = text.encode()
    return len(raw.translate(None, _ASCII_CONTROLS)) == len(raw) and not _is_spaced_out(text)


def _is_spaced_out(text: str) -> bool:
    # The first pattern is a cheap filter: it starts with a separator, which is rarer than a letter.
    return bool(_MAYBE_SPACED_OUT.search(text) and _SPACED_OUT.search(text))


def _reveal(match: re.Match[str]) -> str:
    run = match[0]
    if run in _FLAGS and match.string[match.start() - 1 : match.start()] == _BLACK_FLAG:
        return run
    # One selector chooses a form of the character before it; several spell bytes.
    reads_selectors = sum(any(ord(each) in block for block in _SELECTORS) for each in run) > 1
    return "".join(_spelt(each, reads_selectors=reads_selectors) for each in run)


def _spelt(hidden: str, *, reads_selectors: bool) -> str:
    code = ord(hidden)
    if hidden in _BREAKS:
        return "\n"
    if code in _TAGS:
        return _printable(code - _TAGS.start)
    first, second = _SELECTORS
    if reads_selectors and code in second:
        return _printable(code - second.start + len(first))
    return ""


def _printable(code: int) -> str:
    letter = chr(code)
    return letter if letter.isascii() and letter.isprintable() else ""


def _decompose(text: str) -> str:
    """Return NFKD, with joiners only where they carry meaning.

    Without a joiner, the marks on both sides are sorted again. That can separate another joiner from its neighbours.
    """
    decomposed = _to_nfkd(text)
    if "\u200c" not in decomposed and "\u200d" not in decomposed:
        return decomposed
    for unwanted in (_STRAY_JOINER, _STRAY_JOINER, _JOINER):
        cleaned = unwanted.sub("", decomposed)
        if cleaned == decomposed:
            break
        decomposed = _to_nfkd(cleaned)
    return decomposed


def _to_nfkd(text: str) -> str:
    decomposed = to_form("NFKD", _LONG_RUN.sub(_cut_marks, text))
    if len(decomposed) > len(text):
        decomposed = _LONG_RUN.sub(_cut_marks, decomposed)
    return STYLED.sub(lambda match: STYLED_LETTERS[match[0]], decomposed)


def _cut_marks(match: re.Match[str]) -> str:
    kept: list[str] = []
    marks = 0
    for character in match[0]:
        if combining(character):
            marks += 1
        elif not _JOINER.match(character):
            marks = 0
        if marks <= _MOST_MARKS or not combining(character):
            kept.append(character)
    return "".join(kept)


def _join(match: re.Match[str]) -> str:
    letters = match[0].replace(match[1], "")
    return letters if len(letters) <= _LONGEST_WORD else match[0]


def _without_disguise(match: re.Match[str]) -> str:
    accents = match[0]
    if len(accents) > _MOST_ACCENTS:
        return ""
    bearer = match.string[match.start() - 1 : match.start()]
    return _STROKE.sub("", accents) if bearer.isalnum() else accents
