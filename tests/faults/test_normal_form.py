"""Any string has a normal form: it is its own, it is no blank unless the text was, and it is not much longer."""

import random
from collections.abc import Callable

from ctd_guardrail.text.normalise import normalise

PIECES = (
    *"ab. -_*|~\n",
    *"аосжΑαꓮᏢﷺﬁ①ⓚ🅺ᴋɪᶦ½Å가क्षم한각👩💻🏴❤",
    *"\u0300\u0336\u0338\u0345\u0344\u05b0\u064e\u093c\u094d\u0f71\u0f73\u0f77\u3099\u0e4d\u0e32\u09c7\u09be",
    *"\u200b\u200c\u200d\u00ad\u202e\u3164\u1160\uffa0\ufe0f\ufe00\U000e0101\U000e0041\U000e0067\x00\x85\u2028\ud83d\ude00",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\u0301" * 40,
    "k i l l ",
    "h.a.r.m",
)


def string(rng: random.Random) -> str:
    return "".join(
        rng.choice(PIECES) if rng.random() < 0.8 else chr(rng.randrange(rng.choice((0x500, 0x3100, 0x110000))))
        for _ in range(rng.randrange(20))
    )


def test_any_string_has_a_normal_form(trials: Callable[..., int], record: Callable[..., None]) -> None:
    rng = random.Random(0)
    held = changed = 0
    total = trials(full=10_000, reduced=2_000)
    for _ in range(total):
        text = string(rng)
        normal = normalise(text)
        held += (
            normalise(normal) == normal
            and len(normal) <= 18 * len(text)
            and bool(normal.strip()) == bool(text.strip())
            and normal == normal.encode().decode()
        )
        changed += normal != text
    record("normal_form", held, total, figure=f"{changed / total:.0%} of them changed")
