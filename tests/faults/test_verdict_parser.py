"""Whatever the expert writes: only the agreed form is a verdict."""

import json
import random
import string
from collections.abc import Callable
from typing import Any

from ctd_guardrail.errors import ExpertVerdictError
from ctd_guardrail.experts.verdict import p_unsafe_from_json, p_unsafe_from_logprobs

WORDS = (
    "safe",
    "unsafe",
    "Yes",
    "No",
    "verdict",
    "confidence",
    "0.9",
    "1",
    "null",
    "true",
    "I",
    "cannot",
    "\u202esafe",
)
VALUES: tuple[Any, ...] = (
    "safe",
    "unsafe",
    "SAFE",
    " safe",
    "",
    None,
    True,
    0,
    0.4,
    0.5,
    0.9,
    1,
    1.1,
    -1,
    "0.9",
    [],
    {},
)


def completion(rng: random.Random) -> str:
    """Return anything from noise to an answer that is nearly, or quite, in the agreed form."""
    form = rng.randrange(5)
    if form == 0:
        return "".join(rng.choices(string.printable + "\u200b\ud800\u00e9", k=rng.randrange(60)))
    if form == 1:
        return " ".join(rng.choices(WORDS, k=rng.randrange(1, 9)))
    keys = rng.choices(
        ("verdict", "confidence", "Verdict", "reason", "verdict "), (6, 6, 1, 1, 1), k=rng.randrange(1, 4)
    )
    raw = json.dumps({key: rng.choice(VALUES) for key in keys})
    if form == 2:
        return raw
    if form == 3:
        return rng.choice(("```json\n{}\n```", "Sure! {}", "{} {}", "[{}]", "{},")).replace("{}", raw)
    place = rng.randrange(len(raw) + 1)
    return raw[:place] + rng.choice(string.printable) + raw[place + rng.randrange(2) :]


def says_safe(text: str) -> bool:
    """Return whether the schema that the expert is given reads safe, by another reader than the one under test."""
    lines = text.strip().split("\n")
    if len(lines) > 2 and lines[0] in {"```json", "```"} and lines[-1] == "```":
        text = "\n".join(lines[1:-1])
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError:
        return False
    if not isinstance(pairs, list) or len(pairs) != 2 or not all(isinstance(pair, tuple) for pair in pairs):
        return False
    answer = dict(pairs)
    confidence = answer.get("confidence")
    return answer.get("verdict") == "safe" and type(confidence) in {int, float} and 0.5 <= confidence <= 1


def test_no_random_completion_is_read_as_safe_unless_the_schema_says_so(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    rng = random.Random(0)
    held = accepted = 0
    total = trials(full=8_000, reduced=2_000)
    for _ in range(total):
        text = completion(rng)
        try:
            is_safe = p_unsafe_from_json(text) <= 0.5
        except ExpertVerdictError:
            is_safe = False
        # At a confidence of one half, safe and unsafe are the same score.
        held += not is_safe or says_safe(text) or says_safe(text.replace("unsafe", "safe"))
        accepted += is_safe
    assert accepted, "the completions never come near the form"
    record("verdict_parser", held, total)


def test_no_random_alternatives_are_read_as_safe_without_the_safe_word(
    trials: Callable[..., int], record: Callable[..., None]
) -> None:
    rng = random.Random(1)
    held = 0
    total = trials(full=2_000, reduced=500)
    tokens = ("Yes", "No", " no", "NO", "\u2581No", "Nope", "None", "n", "", None, 3, "safe", "Not", "\u0120Yes")
    for _ in range(total):
        alternatives = [
            {"token": rng.choice(tokens), "logprob": rng.choice((-0.1, -1, -9999, 0.5, None, True, float("nan")))}
            for _ in range(rng.randrange(4))
        ]
        try:
            is_safe = p_unsafe_from_logprobs(alternatives) < 0.5
        except ExpertVerdictError:
            is_safe = False
        words = [str(entry["token"]).strip(" \u2581\u0120").lower() for entry in alternatives]
        held += not is_safe or "no" in words
    record("verdict_parser", held, total)
