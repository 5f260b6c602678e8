"""The demonstration's data set: rows for the expert, rows for calibration, and rows that neither of them sees.

Whole families (:mod:`calibrate.demo.grammar`) are dealt to the three files. The expert therefore has to generalise to
the acts and requests of the other files. The sentences around the acts are shared. Calibration and unseen rows follow
one law, so that a budget certified on the first holds on the second. ``docs/demo-data.md`` describes the texts.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from calibrate.demo.grammar import Family, Frames, Kind, Request, load_families, load_frames, render
from ctd_guardrail.errors import DataError

__all__ = ["DemoFiles", "write_dataset"]

# Families are dealt in this cycle, and drawn with these relative frequencies. Unseen rows rarely repeat a family.
_DEAL: Final = (
    "expert",
    "prompts",
    "prompts",
    "unseen",
    "expert",
    "prompts",
    "expert",
    "prompts",
    "unseen",
    "prompts",
    "expert",
)
_FREQUENCY: Final = {"expert": 7, "prompts": 7, "unseen": 2}
# Shares of rows with several turns; of the others: with a greeting, with thanks, in lower case without full stop.
_MULTI_TURN: Final = 0.1
_GREETING: Final = 0.12
_THANKS: Final = 0.12
_CARELESS: Final = 0.15
# Attempts to find a new text of a family.
_ATTEMPTS: Final = 20
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Paths of the three files, each in JSON lines.

    Attributes:
        expert: Training rows of the expert.
        prompts: Rows for the two probes and their calibration.
        unseen: Rows for the final run, unknown to the expert and the calibration.
    """

    expert: Path
    prompts: Path
    unseen: Path


def write_dataset(path_dir: Path, *, rows: int = 6000, seed: int = 0) -> DemoFiles:
    """Write ``expert.jsonl``, ``prompts.jsonl`` and ``unseen.jsonl``.

    Every row has ``id``, ``text`` or ``messages``, ``label`` (1 = harmful), ``group`` and ``cluster``, the family.

    Args:
        path_dir: Folder to write to; created if missing.
        rows: Number of rows in all three files.
        seed: The same seed gives the same bytes.

    Raises:
        DataError: The grammar has fewer different requests.
    """
    rng = random.Random(seed)  # noqa: S311  # a data set, not a secret
    pools = _deal(load_families(), rng)
    frames = load_frames()
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in pools}
    seen: set[str] = set()
    for name, family in _draws(pools, rng):
        request = _fresh(family, frames, rng, seen)
        if request is not None:
            parts[name].append(_row(request, family, frames, rng))
            if len(seen) == rows:
                break
    else:
        raise DataError(f"the grammar has only {len(seen)} different requests, not {rows}", hint="Ask for fewer rows")
    path_dir.mkdir(parents=True, exist_ok=True)
    files = DemoFiles(**{name: path_dir / f"{name}.jsonl" for name in parts})
    for name, part in parts.items():
        rng.shuffle(part)
        lines = [json.dumps({"id": f"{name}-{number:04d}", **row}) for number, row in enumerate(part)]
        getattr(files, name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def _deal(families: list[Family], rng: random.Random) -> dict[str, list[Family]]:
    strata: defaultdict[tuple[str, Kind], list[Family]] = defaultdict(list)
    for family in families:
        strata[family.group, family.kind].append(family)
    pools: dict[str, list[Family]] = {"expert": [], "prompts": [], "unseen": []}
    hands = cycle(_DEAL)
    for stratum in strata.values():
        rng.shuffle(stratum)
        for family in stratum:
            pools[next(hands)].append(family)
    return pools


def _draws(pools: dict[str, list[Family]], rng: random.Random) -> Iterator[tuple[str, Family]]:
    """Yield families in rounds."""
    deck = [(name, family) for name, pool in pools.items() for family in pool for _ in range(_FREQUENCY[name])]
    for _ in range(_ROUNDS):
        rng.shuffle(deck)
        yield from deck


def _fresh(family: Family, frames: Frames, rng: random.Random, seen: set[str]) -> Request | None:
    """Return a request with a new text; None if the family seems to have none left."""
    for _ in range(_ATTEMPTS):
        request = render(family, frames, rng)
        if request.text not in seen:
            seen.add(request.text)
            return request
    return None


def _row(request: Request, family: Family, frames: Frames, rng: random.Random) -> dict[str, Any]:
    content: dict[str, Any]
    if rng.random() < _MULTI_TURN:
        turns = zip(cycle(("user", "assistant")), request.turns, strict=False)
        content = {"messages": [{"role": role, "content": turn} for role, turn in turns]}
    else:
        content = {"text": _decorate(request.text, frames, rng)}
    return {**content, "label": request.label, "group": family.group, "cluster": family.id}


def _decorate(text: str, frames: Frames, rng: random.Random) -> str:
    if rng.random() < _GREETING:
        text = rng.choice(frames.lists["greetings"]) + text
    if rng.random() < _THANKS:
        text = text + rng.choice(frames.lists["thanks"])
    if rng.random() < _CARELESS:
        text = text.lower().rstrip(".?!")
    return text
