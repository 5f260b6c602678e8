"""The grammar of the demonstration: hand-written acts and requests by topic, and the sentences around the acts.

The texts are in ``grammar/*.yaml``: one file for each topic, and ``frames.yaml`` for what the topics share. ``{a|b}``
stands for one of its alternatives. ``{my}``, ``{me}``, ``{myself}`` and ``{I}`` become ``their``, ``them`` and so on
if the frame is about another person.

The harmfulness of a request depends on several of its parts, by design. A wish is harmful if its act is. A harmful act
is harmful or not by its frame, and frames for and against it contain the same words in another order. A neutral act is
judged by its end: a knife is sharpened for a trout or for a stepfather. Single words mislead: processes are killed and
photographs blown up. A linear probe on pooled activations therefore learns something and misses much.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Any, Final

import yaml

__all__ = ["GROUPS", "Family", "Frames", "Kind", "Request", "load_families", "load_frames", "render"]

GROUPS: Final = (
    "chemistry",
    "computing",
    "finance",
    "medicine",
    "privacy",
    "security",
    "self_harm",
    "violence",
)

_SLOT: Final = re.compile(r"\{([^{}]*)\}")
_PRONOUNS: Final[Mapping[str, str]] = {"my": "their", "me": "them", "myself": "themselves", "I": "they"}


class Kind(StrEnum):
    """Kind of a family; also its key in a topic's file."""

    HARMFUL = "harmful"
    PROTECTIVE = "protective"
    ORDINARY = "ordinary"
    NEUTRAL = "neutral"
    HARMFUL_REQUEST = "harmful_requests"
    HARMLESS_REQUEST = "harmless_requests"


# For each kind of act: its lists of frames, their frequencies, and the resulting labels.
_STANCES: Final[Mapping[Kind, tuple[tuple[str, float, int], ...]]] = {
    Kind.HARMFUL: (
        ("wish", 0.14, 1),
        ("support", 0.08, 1),
        ("insist", 0.33, 1),
        ("hinder", 0.25, 0),
        ("reflect", 0.20, 0),
    ),
    Kind.PROTECTIVE: (("wish", 0.6, 0), ("support", 0.4, 0)),
    Kind.ORDINARY: (("wish", 0.8, 0), ("support", 0.2, 0)),
}
# Share of acts with a manner, and the lists of manners.
_MANNER: Final = 0.5
_MANNERS: Final = {
    Kind.HARMFUL: "harmful_manners",
    Kind.PROTECTIVE: "harmless_manners",
    Kind.ORDINARY: "harmless_manners",
}
# Share of conversations with a single reply.
_SHORT: Final = 0.85
_FIRST_PERSON: Final = frozenset({"wish", "insist"})


@dataclass(frozen=True, slots=True)
class Family:
    """One hand-written pattern. All rows made from it stay together in every split.

    Attributes:
        id: For example ``finance/neutral/3``.
        group: The topic.
        kind: Kind of the pattern.
        pattern: The act or the whole request, with slots.
        goals: Harmless ends, then harmful ends, of a neutral act; empty otherwise.
    """

    id: str
    group: str
    kind: Kind
    pattern: str
    goals: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True, slots=True)
class Frames:
    """The sentences around the acts.

    Attributes:
        lists: Frames by list name, as in ``frames.yaml``.
        openers: A first turn for each topic, with slots.
    """

    lists: Mapping[str, tuple[str, ...]]
    openers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """A request without greeting, thanks or careless spelling.

    Attributes:
        text: The request in one turn.
        turns: The same request over several turns, user and assistant in alternation, user first and last.
        label: 1 = harmful.
    """

    text: str
    turns: tuple[str, ...]
    label: int


def load_families() -> list[Family]:
    """Return all families of all topics, in a fixed order."""
    families: list[Family] = []
    for group in GROUPS:
        topic = _read(group)
        for kind in Kind:
            for number, entry in enumerate(topic[kind]):
                identifier = f"{group}/{kind}/{number}"
                if kind is Kind.NEUTRAL:
                    goals = (tuple(entry["care"]), tuple(entry["harm"]))
                    families.append(Family(identifier, group, kind, entry["act"], goals))
                else:
                    families.append(Family(identifier, group, kind, entry))
    return families


def load_frames() -> Frames:
    """Return the frames that all topics share, and the topics' openers."""
    lists = {name: tuple(frames) for name, frames in _read("frames").items()}
    return Frames(lists, {group: _read(group)["opener"] for group in GROUPS})


def render(family: Family, frames: Frames, rng: random.Random) -> Request:
    """Return one request of the family.

    Args:
        family: The pattern.
        frames: The frames to choose from.
        rng: Source of all choices.
    """
    if family.kind is Kind.NEUTRAL:
        return _render_neutral(family, frames, rng)
    if family.kind in _STANCES:
        stances = _STANCES[family.kind]
        name, _, label = rng.choices(stances, weights=[weight for _, weight, _ in stances])[0]
        act = _fill(family.pattern, rng, first_person=name in _FIRST_PERSON)
        if rng.random() < _MANNER:
            act = f"{act} {rng.choice(frames.lists[_MANNERS[family.kind]])}"
        text = _put(rng.choice(frames.lists[name]), act=act)
    else:
        label = int(family.kind is Kind.HARMFUL_REQUEST)
        text = _fill(family.pattern, rng, first_person=True)
    opener = _fill(frames.openers[family.group], rng, first_person=True)
    return Request(text, (opener, *_small_talk(frames, rng), text), label)


def _render_neutral(family: Family, frames: Frames, rng: random.Random) -> Request:
    label = rng.randrange(2)
    act = _fill(family.pattern, rng, first_person=True)
    goal = rng.choice(family.goals[label])
    text = _put(rng.choice(frames.lists["purpose"]), act=act, goal=goal)
    question = _put(rng.choice(frames.lists["wish"]), act=act)
    return Request(text, (f"I want to {goal}.", *_small_talk(frames, rng), question), label)


def _small_talk(frames: Frames, rng: random.Random) -> tuple[str, ...]:
    reply = rng.choice(frames.lists["replies"])
    if rng.random() < _SHORT:
        return (reply,)
    return (reply, rng.choice(frames.lists["follow_ups"]), rng.choice(frames.lists["second_replies"]))


def _fill(pattern: str, rng: random.Random, *, first_person: bool) -> str:
    def choose(slot: re.Match[str]) -> str:
        inside: str = slot[1]
        if inside in _PRONOUNS:
            return inside if first_person else _PRONOUNS[inside]
        return rng.choice(inside.split("|"))

    return _SLOT.sub(choose, pattern)


def _put(frame: str, **parts: str) -> str:
    return _SLOT.sub(lambda slot: parts[slot[1]], frame)


def _read(name: str) -> dict[str, Any]:
    text = files("calibrate.demo").joinpath("grammar", f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
