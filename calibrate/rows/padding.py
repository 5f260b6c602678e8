"""Labelled rows inside benign context, for the comparison of candidates.

A request does not become safe if harmless text surrounds it. A mean over tokens dilutes it, and short rows alone do not
show that (arXiv 2601.11516).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.text.conversation import Conversation, Message

__all__ = ["pad_rows"]


# Safe texts before the row's own, and as many behind it.
_CONTEXT: Final = 3
_MOST_ROWS: Final = 256
# Characters of the padded rows, as a share of those of all rows: a bound on the added forward passes.
_SHARE: Final = 0.04


def pad_rows(
    dataset: Dataset, rows: IntArray, folds: IntArray, clusters: IntArray, *, total: int, max_tokens: int, seed: int
) -> tuple[Dataset, IntArray]:
    """Return a small sample of rows, each with safe rows of its fold and other clusters around its last turn.

    Args:
        dataset: All rows.
        rows: Indices of the rows to draw from, shape [n].
        folds: Fold of each, shape [n]. Context comes from the same fold, so the fit that scores it has not seen it.
        clusters: Cluster of each, shape [n].
        total: Characters of all rows whose activations are computed; the sample has at most 4% as many.
        max_tokens: Longest conversation that the base model reads.
        seed: Seed of the draw.

    Returns:
        The padded conversations, and for each the position in ``rows`` of the row inside. Empty if nothing fits.
    """
    rng = np.random.default_rng(seed)
    safe = dataset.labels[rows] == 0
    chosen: list[int] = []
    padded: list[Conversation] = []
    left = int(_SHARE * total)
    for place in rng.permutation(rows.size).tolist():
        if len(chosen) == _MOST_ROWS:
            break
        others = np.flatnonzero(safe & (folds == folds[place]) & (clusters != clusters[place]))
        if others.size < 2 * _CONTEXT:
            continue
        context = [dataset.conversations[row] for row in rows[rng.choice(others, 2 * _CONTEXT, replace=False)]]
        conversation = _surround(dataset.conversations[rows[place]], context)
        size = len(conversation.plain_text().encode())
        # A token is at least a byte.
        if size > left or size > max_tokens // 2:
            continue
        left -= size
        chosen.append(place)
        padded.append(conversation)
    return dataset.view(padded, rows[chosen]), np.array(chosen, dtype=np.int64)


def _surround(conversation: Conversation, context: Sequence[Conversation]) -> Conversation:
    texts = [part.plain_text() for part in context]
    *earlier, last = conversation.messages
    content = "\n\n".join([*texts[:_CONTEXT], last.content, *texts[_CONTEXT:]])
    return Conversation((*earlier, Message(last.role, content)))
