"""Unsafe prompts in disguise: what is read is the prompt. docs/benchmarks.md has the recall of each disguise."""

import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.robustness.disguises import DISGUISES
from calibrate.demo.prompts import write_dataset
from calibrate.rows.data import read_dataset
from ctd_guardrail.text.normalise import normalise

# No rule tells digits that stand for letters from others.
UNDONE = [name for name in DISGUISES if name != "digits for letters"]
HIDDEN_BEHIND = {"tag characters": "hello", "variation selectors": "hello"}


def letters(text: str) -> str:
    return "".join(character for character in normalise(text).casefold() if character.isalnum())


def test_seventeen_of_eighteen_disguises_come_off(
    trials: Callable[..., int], record: Callable[..., None], tmp_path: Path
) -> None:
    dataset = read_dataset([write_dataset(tmp_path, rows=2_000).prompts])
    rows = zip(dataset.conversations, dataset.labels, strict=True)
    unsafe = [conversation.plain_text() for conversation, label in rows if label and len(conversation.messages) == 1]
    prompts = [text for text in unsafe if text.isascii()][: trials(full=300, reduced=10)]
    rng = random.Random(0)
    held = sum(
        letters(DISGUISES[name](prompt, rng)) == HIDDEN_BEHIND.get(name, "") + letters(prompt)
        for name in UNDONE
        for prompt in prompts
    )
    record("disguise", held, len(UNDONE) * len(prompts))
