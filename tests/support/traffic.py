"""Laws of drawn traffic: conversations whose turns depend on each other, and texts that come again and again.

The delegation rate of a threshold follows from each law exactly. A test therefore compares with the truth, and not with
another sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from ctd_guardrail.policy.turns import TurnScores

__all__ = ["Conversations", "Texts", "Turns", "interleave"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Turns(NamedTuple):
    """Turns of whole conversations, in the order of the conversations.

    Attributes:
        d: Delegation values; +inf where the base model cannot read a turn.
        conversation: Number of each turn's conversation, from 0, ascending.
    """

    d: Floats
    conversation: Ints

    @property
    def lengths(self) -> Ints:
        """Number of turns of each conversation."""
        return np.bincount(self.conversation)

    @property
    def place(self) -> Ints:
        """Number of each turn in its conversation, from 0."""
        lengths = self.lengths
        return np.arange(self.d.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    @property
    def scores(self) -> TurnScores:
        """The turns as the data behind a certificate."""
        return TurnScores.of(self.d, self.conversation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Conversations of geometric length. d is normal, and correlated within a conversation.

    Attributes:
        mean: Mean number of turns before the cut at `longest`.
        longest: Largest number of turns.
        correlation: Correlation of d between two turns of one conversation.
        drift: Rise of d from one turn to the next, in standard deviations.
        unreadable: Share of the turns that the base model cannot read.
    """

    mean: float = 4.0
    longest: int = 20
    correlation: float = 0.5
    drift: float = 0.0
    unreadable: float = 0.0

    def draw(self, rng: np.random.Generator, conversations: int) -> Turns:
        lengths = np.minimum(rng.geometric(1 / self.mean, conversations), self.longest)
        turns = Turns(np.zeros(int(lengths.sum())), np.repeat(np.arange(conversations), lengths))
        shared = rng.normal(size=conversations)[turns.conversation]
        own = rng.normal(size=turns.d.size)
        d = np.sqrt(self.correlation) * shared + np.sqrt(1 - self.correlation) * own + self.drift * turns.place
        if self.unreadable:
            d[rng.random(d.size) < self.unreadable] = np.inf
        return turns._replace(d=d)

    @property
    def mean_length(self) -> float:
        """Mean number of turns."""
        return float(self._shares().sum())

    def calls(self, threshold: float) -> float:
        """Mean number of turns of a conversation that the threshold delegates."""
        above = ndtr(self.drift * np.arange(self.longest) - threshold)
        return float(self._shares() @ (self.unreadable + (1 - self.unreadable) * above))

    def rate(self, threshold: float) -> float:
        """Share of all turns that the threshold delegates: R = E[calls] / E[turns]."""
        return self.calls(threshold) / self.mean_length

    def threshold(self, rate: float) -> float:
        """Return the threshold that delegates this share of all turns."""
        return float(brentq(lambda threshold: self.rate(threshold) - rate, -20, 20))

    def _shares(self) -> Floats:
        """Probability that a conversation has a turn of each number."""
        return (1 - 1 / self.mean) ** np.arange(self.longest)


class Texts:
    """Texts that users send with the frequencies of Zipf's law. Rarer texts have a higher d.

    Args:
        size: Number of texts.
        exponent: Exponent of the law.
        rise: Rise of d with the logarithm of the rank.
        seed: Seed of the values d.
    """

    def __init__(self, size: int, *, exponent: float = 1.1, rise: float = 0.15, seed: int = 0) -> None:
        ranks = np.arange(1, size + 1)
        self.share = ranks**-exponent / (ranks**-exponent).sum()
        self.d: Floats = np.random.default_rng(seed).normal(size=size) + rise * np.log(ranks)

    def draw(self, rng: np.random.Generator, requests: int) -> Ints:
        """Return the number of the text of each request."""
        return rng.choice(self.share.size, size=requests, p=self.share)

    def rate(self, threshold: float) -> float:
        """Share of all requests whose text the threshold delegates."""
        return float(self.share[self.d > threshold].sum())


def interleave(turns: Turns, at_once: int, rng: np.random.Generator) -> Ints:
    """Return the turns in the order in which a service sees them, with this number of conversations open at any time.

    The turns of a conversation keep their order, and conversations start in the order of their numbers.
    """
    ends = np.cumsum(turns.lengths).tolist()
    nexts = [0, *ends[:-1]]
    waiting = iter(range(len(ends)))
    open_ones = [number for _, number in zip(range(at_once), waiting, strict=False)]
    order: list[int] = []
    draws = rng.random(turns.d.size)
    for draw in draws:
        slot = int(draw * len(open_ones))
        number = open_ones[slot]
        order.append(nexts[number])
        nexts[number] += 1
        if nexts[number] == ends[number]:
            later = next(waiting, None)
            if later is None:
                open_ones.pop(slot)
            else:
                open_ones[slot] = later
    return np.array(order)
