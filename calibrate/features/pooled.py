"""Mean-pooled activations of the rows: computed a few hundred at a time, each lot saved before the next begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.data import Dataset
from calibrate.features.chunks import cache_folder, chunks, compute, distinct, read_chunk, write_chunk
from calibrate.pooled import PooledRows
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.activations.ragged import Ragged, segment_mean

__all__ = ["pool_activations"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_POOLED: Final = "pooled"
_WINDOWS: Final = "windows"


def pool_activations(
    dataset: Dataset, rows: IntArray, engine: ActivationEngine, *, cache: Path, progress: Progress
) -> PooledRows:
    """Return the mean over the tokens of each window of each row.

    Equal conversations are computed once, and never again by a later run, whatever rows it takes in what order.

    Args:
        dataset: The rows.
        rows: Indices of those to compute.
        engine: The base model; the rail uses the same.
        cache: Folder of finished chunks.
        progress: Where a bar is drawn.

    Raises:
        DataError: A row has more tokens than ``base.max_tokens``, or its chat template refuses it; file and row are
            named.
    """
    places = distinct(dataset, rows)
    found: list[FloatArray | None] = [None] * rows.size
    bar = progress.add_task("Activations", total=len(places))

    def fill(digests: Sequence[bytes], means: Sequence[FloatArray]) -> None:
        known = [(mean, places.pop(digest)) for digest, mean in zip(digests, means, strict=True) if digest in places]
        for mean, wanted in known:
            for place in wanted:
                found[place] = mean
        progress.advance(bar, len(known))

    folder = cache_folder(cache, "activations", engine)
    for file in folder.glob("*.safetensors"):
        fill(*_read(file, engine.width))
    for digests in chunks(dataset, {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}):
        wanted = [int(rows[places[digest][0]]) for digest in digests]
        means = compute(dataset, wanted, lambda conversations: engine.run_many(conversations, _mean_and_length))
        _write(folder, digests, means)
        fill(digests, means)
    return _join([mean for mean in found if mean is not None], engine.width)


def _mean_and_length(tokens: Ragged) -> torch.Tensor:
    """Return each window's mean and, in a last column, its number of tokens, which float32 holds exactly."""
    mean = segment_mean(tokens)
    return torch.cat([mean, mean.new_tensor(tokens.lengths)[:, None]], dim=1)


def _join(means: Sequence[FloatArray], width: int) -> PooledRows:
    joined = np.concatenate([np.empty((0, width + 1), dtype=np.float32), *means])
    windows = np.array([len(mean) for mean in means], dtype=np.int64)
    return PooledRows(joined[:, :-1], joined[:, -1].astype(np.int64), windows)


def _write(folder: Path, digests: Sequence[bytes], means: Sequence[FloatArray]) -> None:
    counts = torch.tensor([len(mean) for mean in means])
    write_chunk(folder, digests, {_POOLED: torch.from_numpy(np.concatenate(means)), _WINDOWS: counts})


def _read(file: Path, width: int) -> tuple[list[bytes], list[FloatArray]]:
    """Return the conversations of a chunk and the means of their windows; none where the disk has damaged it."""
    digests, tensors = read_chunk(file)
    means, windows = tensors.get(_POOLED), tensors.get(_WINDOWS)
    if means is None or windows is None or means.dtype != torch.float32 or windows.shape != (len(digests),):
        return [], []
    if means.shape != (int(windows.sum()), width + 1) or (windows < 1).any():
        return [], []
    return digests, [part.numpy() for part in means.split(windows.tolist())]
