import random

import pytest

from benchmarks.robustness.disguises import DISGUISES
from ctd_guardrail.text.normalise import normalise

TEXT = "How exactly would I have cooked That Jumpy quick Zebra and an expensive lunch box"


def plain(text: str) -> str:
    return " ".join(normalise(text).casefold().split())


@pytest.mark.parametrize("name", [name for name in DISGUISES if name != "digits for letters"])
def test_the_normaliser_takes_a_disguise_off(name: str) -> None:
    disguised = DISGUISES[name](TEXT, random.Random(0))
    assert disguised != TEXT
    assert plain(disguised).removeprefix("hello!") == plain(TEXT)


def test_there_are_eighteen_and_one_of_them_stays_on() -> None:
    assert len(DISGUISES) == 18
    assert plain(DISGUISES["digits for letters"](TEXT, random.Random(0))) != plain(TEXT)
