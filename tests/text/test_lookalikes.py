"""The table of lookalikes is the one that tools/lookalikes.py writes."""

import hashlib

from ctd_guardrail.text.confusables import LOOKALIKES
from ctd_guardrail.text.normalise import NORMALISER
from tools.lookalikes import TARGET, UNICODE, list_lookalikes, render


def test_the_table_is_that_of_the_script() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), "run `python tools/lookalikes.py`"
    assert list_lookalikes() == LOOKALIKES
    assert UNICODE in TARGET.read_text(encoding="utf-8")


def test_another_table_is_another_normaliser() -> None:
    table = "".join(letter + latin for letter, latin in sorted(LOOKALIKES.items()))
    digest = hashlib.sha256(table.encode()).hexdigest()
    assert (NORMALISER, digest[:16]) == ("1", "ca3f0afb1a0b3c15"), "policies depend on it: raise NORMALISER"


def test_a_lookalike_is_one_letter_of_another_script_and_stands_for_one_latin_letter() -> None:
    assert all(not letter.isascii() and len(letter) == 1 for letter in LOOKALIKES)
    assert all(latin.isascii() and latin.isalpha() and len(latin) == 1 for latin in LOOKALIKES.values())
