"""Write ctd_guardrail/text/confusables.py: letters of other scripts that look like Latin ones.

The source is the list of confusables of Unicode (UTS 39) in the package `confusable-homoglyphs`, a development
dependency. The exceptions below are this project's. A change of the table changes normal forms: give
:data:`ctd_guardrail.text.normalise.NORMALISER` another value with it.

    python tools/lookalikes.py
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

__all__ = ["TARGET", "UNICODE", "list_lookalikes", "render"]

UNICODE: Final = "15.1"
TARGET: Final = Path(__file__).parents[1] / "ctd_guardrail" / "text" / "confusables.py"

# Code points that tell versions apart: a Han block is new in 15.1, the script Garay in 16.0.
_NEW_IN_15_1: Final = 0x2EBF0
_NEW_IN_16_0: Final = 0x10D40

# Blocks of the scripts whose letters pass for Latin, in the order of the table.
_BLOCKS: Final = {
    "Greek": (range(0x0370, 0x0400),),
    "Cyrillic": (range(0x0400, 0x0530),),
    "Armenian": (range(0x0530, 0x0590),),
    "Cherokee": (range(0x13A0, 0x1400), range(0xAB70, 0xABC0)),
    "Coptic": (range(0x2C80, 0x2D00),),
    "Lisu": (range(0xA4D0, 0xA500),),
}

# Letters that disguises use for another Latin letter than Unicode names, or that Unicode does not list.
_DISGUISES: Final = {"к": "k", "м": "m", "т": "t", "κ": "k", "τ": "t", "ν": "n", "ս": "s", "ӏ": "l"}

# Letters that the normaliser of today leaves as they are: frequent in plain words beside Latin ones, or rare.
_LEFT: Final = "ͺγσϒϱϲϹϺЬгѡҽӀգքᎥᎽᏂᏏᏒᏔᏚᏧᏳꭵꮁꮃꮓꮩꮪꮯⲅⲒⳐꓒ"


def list_lookalikes() -> dict[str, str]:
    """Return each letter of another script and the Latin letter that it looks like.

    Raises:
        SystemExit: The installed package has the data of another version of Unicode.
    """
    from confusable_homoglyphs.categories import categories_data  # noqa: PLC0415  # a development dependency
    from confusable_homoglyphs.confusables import confusables_data  # noqa: PLC0415  # likewise

    known = [range(first, last + 1) for first, last, *_ in categories_data["code_points_ranges"]]
    if not any(_NEW_IN_15_1 in block for block in known) or any(_NEW_IN_16_0 in block for block in known):
        raise SystemExit(f"confusable-homoglyphs has not the data of Unicode {UNICODE}; install 3.3.1")
    letters = (chr(code) for blocks in _BLOCKS.values() for block in blocks for code in block)
    return {letter: latin for letter in letters for latin in _latin(letter, confusables_data) if letter not in _LEFT}


def render() -> str:
    """Return the text of the table's module."""
    table = list_lookalikes()
    lines = [
        '"""Letters of other scripts that look like Latin ones. tools/lookalikes.py writes this file: do not edit it.',
        "",
        f"From the confusables of Unicode {UNICODE} (UTS 39), with the exceptions that the script states.",
        '"""',
        "",
        "from typing import Final",
        "",
        '__all__ = ["LOOKALIKES"]',
        "",
        "LOOKALIKES: Final = {",
    ]
    for script, blocks in _BLOCKS.items():
        lines.append(f"    # {script}.")
        inside = (letter for letter in table if any(ord(letter) in block for block in blocks))
        lines += [f'    "{letter}": "{table[letter]}",' for letter in inside]
    return "\n".join([*lines, "}", '"""Other letter to Latin letter."""']) + "\n"


def _latin(letter: str, confusables: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    if letter in _DISGUISES:
        yield _DISGUISES[letter]
        return
    for prototype in (each["c"] for each in confusables.get(letter, [])):
        if len(prototype) == 1 and prototype in string.ascii_letters:
            # Unicode gives small l for every stroke; a capital letter stands for capital I.
            yield "I" if prototype == "l" and letter in "ІΙꓲ" else prototype


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"{TARGET.name}: {len(list_lookalikes())} letters, Unicode {UNICODE}")
