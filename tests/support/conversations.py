"""Conversations with dependent turns, and the rates at which a threshold delegates them."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from ctd_guardrail.policy.turns import TurnScores

__all__ = ["draw_conversations", "true_rates"]


def draw_conversations(
    rng: np.random.Generator, n: int, *, mean: float, most: int, correlation: float = 0.5, drift: float = 0.0
) -> TurnScores:
    """Draw conversations of geometric length, with normal scores of this correlation and drift in each."""
    lengths = np.ones(n, dtype=np.int64) if most == 1 else np.minimum(rng.geometric(1 / mean, n), most)
    conversation = np.repeat(np.arange(n), lengths)
    turn = np.arange(conversation.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    shared = math.sqrt(correlation) * rng.normal(size=n)[conversation]
    own = math.sqrt(1 - correlation) * rng.normal(size=conversation.size)
    d = shared + own + drift * turn
    order = np.argsort(d, kind="stable")
    return TurnScores(d[order], conversation[order])


def true_rates(threshold: float, *, mean: float, most: int, drift: float = 0.0) -> tuple[float, float]:
    """Return the expected calls per turn and per conversation of :func:`draw_conversations`."""
    turn = np.arange(most)
    reached = np.ones(1) if most == 1 else (1 - 1 / mean) ** turn
    calls = float((reached * ndtr(drift * turn - threshold)).sum())
    return calls / float(reached.sum()), calls
