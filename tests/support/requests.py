"""Requests of drawn traffic, as the monitors see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from ctd_guardrail.observability.events import Arrived, Event, Served
from tests.support.traffic import Turns, interleave

__all__ = ["requests"]

# Seconds between two turns of one conversation, on average, and from the last turn to the end of the stream.
_PACE_S: Final = 60.0
_END_S: Final = 10_000.0


def requests(
    turns: Turns, threshold: float, at_once: int, rng: np.random.Generator, *, paused: float = 0.0
) -> Iterator[Event]:
    """Yield the first and the last event of each request, as the cascade emits them.

    One request of another conversation follows hours later: by then all have ended.

    Args:
        turns: The turns.
        threshold: lambda.
        at_once: Number of conversations that are open at any time.
        rng: Draws the order.
        paused: Probability that a conversation pauses for hours after a turn. What follows the first pause comes when
            all conversations have paused or ended.
    """
    place, order = turns.place, interleave(turns, at_once, rng)
    goes_on = np.concatenate([place[1:] > 0, [False]])
    pauses = np.cumsum(goes_on & (rng.random(place.size) < paused)) if paused else np.zeros(place.size, dtype=np.int64)
    # Whether a conversation has paused before a turn: the number of pauses since its first turn.
    before = np.concatenate([[0], pauses[:-1]])
    is_late = before > before[np.arange(place.size) - place]
    end = turns.d.size * _PACE_S / at_once + _END_S
    for start, part in ((0.0, order[~is_late[order]]), (end, order[is_late[order]])):
        for step, turn in enumerate(part.tolist()):
            name, digest, at = f"{turns.conversation[turn]:x}", f"{turn:x}", start + step * _PACE_S / at_once
            d = float(turns.d[turn])
            yield Arrived(name, digest, at)
            yield Served(name, digest, (d,), int(d > threshold), is_placed=True, at=at, earlier=int(place[turn]))
    last = Served("last", "last", (), 0, is_placed=True, at=2 * end)
    yield Arrived(last.conversation, last.digest, last.at)
    yield last
