"""p and d of the rows, as the rail computes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.data import Dataset
from calibrate.features import CHUNK, PooledRows
from calibrate.features.chunks import compute
from calibrate.train import TrainedProbes
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.probes.windows import over_windows

__all__ = ["score_rows"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def score_rows(
    trained: TrainedProbes,
    dataset: Dataset,
    rows: IntArray,
    pooled: PooledRows,
    engine: ActivationEngine,
    *,
    progress: Progress,
) -> tuple[FloatArray, FloatArray]:
    """Return p and d of each row, both of shape [rows].

    Probes that read the mean read the activations that there are; for others the rows pass the base model once more.

    Args:
        trained: The probes.
        dataset: The rows.
        rows: Indices of those to score.
        pooled: Their mean activations, of the layers that the probes read.
        engine: The base model, at these layers.
        progress: Where a bar is drawn.

    Raises:
        DataError: The base model refuses a row; file and row are named.
    """
    if trained.probes.spec.is_linear_in_mean:
        p, d = trained.score(pooled).T
        return p, d

    def score(conversations: Sequence[Conversation]) -> list[NDArray[np.float32]]:
        return engine.run_many(conversations, trained.probes)

    bar = progress.add_task("Scores", total=rows.size)
    scores = np.empty((rows.size, 2))
    for start in range(0, rows.size, CHUNK):
        part = rows[start : start + CHUNK].tolist()
        scores[start : start + CHUNK] = [over_windows(windows) for windows in compute(dataset, part, score)]
        progress.advance(bar, len(part))
    p, d = scores.T
    return p, d
