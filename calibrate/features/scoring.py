"""p and d of the rows, computed by the code that the rail runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from rich.progress import Progress

from calibrate.compute.workers import InProcess, Tensors, Workers
from calibrate.features.chunks import compute, distinct
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.text.conversation import Conversation

__all__ = ["score_chunk", "score_rows"]

_SCORES: Final = "scores"


def score_rows(
    probes: Probes,
    engine: BatchedBaseModel,
    dataset: Dataset,
    rows: IntArray,
    *,
    progress: Progress,
    workers: Workers | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return p and d of the rows, each of shape [rows].

    Args:
        probes: Both probes.
        engine: The base model, at the layers that they read.
        dataset: The rows.
        rows: Indices of the rows to score.
        progress: Progress bars.
        workers: Workers that compute; None: this process.

    Raises:
        DataError: A row is too long, or its chat template refuses it; file and row are named.
    """
    places = distinct(dataset, rows)
    bar = progress.add_task("Scores", total=len(places))
    scores = np.empty((rows.size, 2))
    missing = {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}
    work = partial(score_chunk, probes.spec, probes.tensors())
    for digests, tensors in compute(dataset, missing, work, workers or InProcess(engine)):
        for digest, values in zip(digests, tensors[_SCORES].numpy(), strict=True):
            scores[places[digest]] = values
        progress.advance(bar, len(digests))
    return scores[:, 0], scores[:, 1]


def score_chunk(
    spec: ProbeSpec,
    parameters: Mapping[str, Float32Array],
    engine: BatchedBaseModel,
    conversations: Sequence[Conversation],
) -> Tensors:
    """Return p and d of each conversation of a chunk, shape [conversations, 2]."""
    found = engine.run_many(conversations, Probes(spec, parameters))
    return {_SCORES: torch.from_numpy(np.stack([over_windows(windows) for windows in found]))}
