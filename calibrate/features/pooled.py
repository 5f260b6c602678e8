"""Mean-pooled activations of the rows, computed and saved in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.progress import Progress

from calibrate.compute.workers import InProcess, Tensors, Workers
from calibrate.features.chunks import cache_folder, compute, distinct, read_chunk, write_chunk
from calibrate.features.pooled_rows import PooledRows
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import Float32Array, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from ctd_guardrail.text.conversation import Conversation

__all__ = ["pool_activations", "pool_chunk"]


_POOLED: Final = "pooled"
_WINDOWS: Final = "windows"


def pool_activations(
    dataset: Dataset,
    rows: IntArray,
    engine: BatchedBaseModel,
    *,
    cache: Path,
    progress: Progress,
    workers: Workers | None = None,
) -> PooledRows:
    """Return the mean over the tokens of each window of each row.

    Equal conversations are computed once, and a later run reads them from the cache.

    Args:
        dataset: The rows.
        rows: Indices of the rows to compute.
        engine: The base model; the rail uses the same.
        cache: Folder of finished chunks.
        progress: Progress bars.
        workers: Workers that compute; None: this process.

    Raises:
        DataError: A row has more tokens than ``base.max_tokens``, or its chat template refuses it; file and row are
            named.
    """
    places = distinct(dataset, rows)
    found: list[Float32Array | None] = [None] * rows.size
    bar = progress.add_task("Activations", total=len(places))

    def fill(digests: Sequence[bytes], means: Sequence[Float32Array]) -> None:
        known = [(mean, places.pop(digest)) for digest, mean in zip(digests, means, strict=True) if digest in places]
        for mean, wanted in known:
            for place in wanted:
                found[place] = mean
        progress.advance(bar, len(known))

    folder = cache_folder(cache, "activations", engine)
    for file in folder.glob("*.safetensors"):
        fill(*_read(file, engine.width))
    missing = {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}
    for digests, tensors in compute(dataset, missing, pool_chunk, workers or InProcess(engine)):
        fill(*_read(write_chunk(folder, digests, tensors), engine.width))
    return _join([mean for mean in found if mean is not None], engine.width)


def pool_chunk(engine: BatchedBaseModel, conversations: Sequence[Conversation]) -> Tensors:
    """Return the tensors that are saved of a chunk: means and number of each conversation's windows."""
    means = engine.run_many(conversations, _mean_and_length)
    return {
        _POOLED: torch.from_numpy(np.concatenate(means)),
        _WINDOWS: torch.tensor([len(mean) for mean in means]),
    }


def _mean_and_length(tokens: Ragged) -> torch.Tensor:
    """Return each window's mean and, in a last column, its number of tokens, which float32 holds exactly."""
    mean = segment_mean(tokens)
    return torch.cat([mean, mean.new_tensor(tokens.lengths)[:, None]], dim=1)


def _join(means: Sequence[Float32Array], width: int) -> PooledRows:
    joined = np.concatenate([np.empty((0, width + 1), dtype=np.float32), *means])
    windows = np.array([len(mean) for mean in means], dtype=np.int64)
    return PooledRows(joined[:, :-1], joined[:, -1].astype(np.int64), windows)


def _read(file: Path, width: int) -> tuple[list[bytes], list[Float32Array]]:
    """Return the conversations of a chunk and the means of their windows, empty if the file is damaged."""
    digests, tensors = read_chunk(file)
    means, windows = tensors.get(_POOLED), tensors.get(_WINDOWS)
    if means is None or windows is None or means.dtype != torch.float32 or windows.shape != (len(digests),):
        return [], []
    if means.shape != (int(windows.sum()), width + 1) or (windows < 1).any():
        return [], []
    return digests, [part.numpy() for part in means.split(windows.tolist())]
