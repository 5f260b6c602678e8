"""p and d of the rows, by the code that the rail runs: its base model, its probes, its windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.data import Dataset
from calibrate.features.chunks import chunks, compute, distinct
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows

__all__ = ["score_rows"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def score_rows(
    probes: Probes, engine: ActivationEngine, dataset: Dataset, rows: IntArray, *, progress: Progress
) -> tuple[FloatArray, FloatArray]:
    """Return p and d of the rows, each of shape [rows].

    Args:
        probes: Both probes.
        engine: The base model, at the layers that they read.
        dataset: The rows.
        rows: Indices of those to score.
        progress: Where a bar is drawn.

    Raises:
        DataError: A row is too long, or its chat template refuses it; file and row are named.
    """
    places = distinct(dataset, rows)
    bar = progress.add_task("Scores", total=len(places))
    scores = np.empty((rows.size, 2))
    for digests in chunks(dataset, {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}):
        wanted = [int(rows[places[digest][0]]) for digest in digests]
        found = compute(dataset, wanted, lambda conversations: engine.run_many(conversations, probes))
        for digest, windows in zip(digests, found, strict=True):
            scores[places[digest]] = over_windows(windows)
        progress.advance(bar, len(digests))
    return scores[:, 0], scores[:, 1]
