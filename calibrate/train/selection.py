"""Choice of layers and kinds: cross-validation of the whole training, on training rows only.

The code that trains and runs the policy trains and scores every candidate, on three sets:

- ``folds``: the training rows, each scored by a fit that has seen neither it nor its cluster.
- ``longer``: the longest third, scored by a fit on the shorter rows.
- ``padded``: rows inside benign context, scored by the fits of the folds. The expert's score of the bare row is used
  for the padded row.

The candidate with the smallest Brier score of the cascade, averaged over the sets, wins; of equals, the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibrate.train.crossfit import FOLDS, assign_folds
from calibrate.train.quality import cascade_quality
from calibrate.train.rows import TrainingRows
from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.probes.spec import Reduction

__all__ = ["SELECTION_ROWS", "Candidate", "PaddedRows", "Scorer", "Trainer", "sample_rows", "select"]


SELECTION_ROWS: Final = 3000
"""Largest number of rows that candidates are compared on. More rows would only take more time."""

_LONG_SHARE: Final = 1 / 3
# Fewest rows of each label among the shorter and among the longest rows.
_FEWEST_ROWS: Final = 30

Scorer = Callable[[TrainingRows], tuple[FloatArray, FloatArray, FloatArray]]
"""Returns p, d and the score of each row if it is delegated, each of shape [rows]."""

Trainer = Callable[[TrainingRows], Scorer]
"""Trains on rows and returns a scorer."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Layers and kinds of one candidate.

    Attributes:
        layers: Layers that are read side by side.
        kinds: Reductions whose average the heads are.
    """

    layers: tuple[int, ...]
    kinds: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Rows inside benign context.

    Attributes:
        rows: With the label and the expert's score of the row inside.
        inside: Position of that row among the rows that are selected on, shape [rows].
    """

    rows: TrainingRows
    inside: IntArray


def sample_rows(clusters: IntArray, most: int = SELECTION_ROWS, *, seed: int) -> IntArray:
    """Return a random sample of rows, ascending: whole clusters, together at most ``most`` rows.

    Args:
        clusters: Cluster of each row, shape [rows].
        most: Largest number of rows. If there are no more rows, all are returned.
        seed: Seed of the sample.
    """
    if clusters.size <= most:
        return np.arange(clusters.size)
    numbers, sizes = np.unique(clusters, return_counts=True)
    kept, left = [], most
    for cluster in np.random.default_rng(seed).permutation(numbers.size).tolist():
        if sizes[cluster] <= left:
            kept.append(numbers[cluster])
            left -= int(sizes[cluster])
    return np.flatnonzero(np.isin(clusters, kept))


def select(
    candidates: Sequence[Candidate],
    rows: TrainingRows,
    trainer_of: Callable[[Candidate], Trainer],
    *,
    padded: PaddedRows | None,
    seed: int,
) -> tuple[Candidate, list[dict[str, Any]]]:
    """Return the best candidate, and the scores of all.

    Args:
        candidates: Candidates, the cheapest first. A single one is not scored.
        rows: The rows to compare them on.
        trainer_of: Returns the trainer of a candidate.
        padded: Rows inside benign context.
        seed: Seed of the folds.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    if len(candidates) == 1:
        return candidates[0], []
    folds = assign_folds(rows.labels, rows.clusters, seed=seed)
    records, briers = [], []
    for candidate in candidates:
        sets = _judge(trainer_of(candidate), rows, folds, padded)
        briers.append(float(np.mean([quality["brier"] for quality in sets.values()])))
        records.append(
            {"layers": list(candidate.layers), "kinds": list(candidate.kinds), "brier": briers[-1], "sets": sets}
        )
    return candidates[int(np.argmin(briers))], records


def _judge(
    train: Trainer, rows: TrainingRows, folds: IntArray, padded: PaddedRows | None
) -> dict[str, dict[str, float]]:
    sets = {"folds": _Scores(rows)}
    if padded is not None and padded.inside.size:
        sets["padded"] = _Scores(padded.rows)
    for fold in range(FOLDS):
        scorer = train(rows.take(np.flatnonzero(folds != fold)))
        sets["folds"].fill(scorer, folds == fold)
        if padded is not None and "padded" in sets:
            sets["padded"].fill(scorer, folds[padded.inside] == fold)
    short, long = _by_length(rows)
    if short.size:
        sets["longer"] = _Scores(rows.take(long))
        sets["longer"].fill(train(rows.take(short)), np.ones(long.size, dtype=np.bool_))
    return {name: scores.quality() for name, scores in sets.items()}


class _Scores:
    """Scores of some rows, filled in parts."""

    def __init__(self, rows: TrainingRows) -> None:
        self._rows = rows
        self._columns = np.zeros((3, len(rows)))

    def fill(self, scorer: Scorer, members: BoolArray) -> None:
        chosen = np.flatnonzero(members)
        if chosen.size:
            self._columns[:, chosen] = scorer(self._rows.take(chosen))

    def quality(self) -> dict[str, float]:
        p, d, merged = self._columns
        return cascade_quality(self._rows.labels, p, d, merged)


def _by_length(rows: TrainingRows) -> tuple[IntArray, IntArray]:
    """Return the shorter rows, without rows of a longer row's cluster, and the longest third.

    Both are empty if one of them has too few rows of a label.
    """
    starts = np.cumsum(rows.pooled.windows) - rows.pooled.windows
    tokens = np.add.reduceat(rows.pooled.lengths, starts)
    order = np.argsort(-tokens, kind="stable")
    long = np.sort(order[: int(_LONG_SHARE * tokens.size)])
    short = np.flatnonzero(~np.isin(rows.clusters, rows.clusters[long]))
    smallest = min(
        (int(np.count_nonzero(rows.labels[part] == label)) for part in (short, long) for label in (0, 1)), default=0
    )
    return (short, long) if smallest >= _FEWEST_ROWS and tokens.min() < tokens.max() else (short[:0], long[:0])
