"""From whole conversations to independent turns.

Keep conversation i with probability T_i / Tmax and draw one of its T_i turns at random. Then each turn of the traffic
is as likely as any other, and the drawn turns come from different conversations: they are an independent sample of
turns. The closed forms for single inputs hold on it. The choice is random and does not look at the scores.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ctd_guardrail.policy.turns import TurnScores

__all__ = ["thin"]

_SEED: Final = 20251201


def thin(scores: TurnScores, max_turns: int) -> TurnScores:
    """Return one random turn of each conversation that is kept; it may be none.

    The same data give the same sample.

    Args:
        scores: The turns.
        max_turns: Tmax, at least the length of the longest conversation.
    """
    if scores.conversation is None:
        lengths, grouped = np.ones(scores.turns, dtype=np.int64), scores.d
    else:
        lengths, grouped = scores.lengths, scores.d[np.argsort(scores.conversation, kind="stable")]
    rng = np.random.default_rng(_SEED)
    kept = rng.random(lengths.size) * max_turns < lengths
    turn = np.minimum((rng.random(lengths.size) * lengths).astype(np.int64), lengths - 1)
    first = np.cumsum(lengths) - lengths
    return TurnScores(np.sort(grouped[(first + turn)[kept]]))
