"""Activations of all tokens of the rows, for probes that read more than the mean.

They are heavy: 8,000 conversations of 100 tokens take a gigabyte at width 768 in bfloat16. So they are kept for a
sample of the rows, in the data type of the base model, in shards that are written one by one and mapped, not read,
into memory.
"""

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
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.activations.ragged import Ragged

__all__ = ["collect_tokens"]

# A token has at least one character, or nearly so: this bounds a shard, and what is in memory while it is computed.
_SHARD_CHARACTERS: Final = 1 << 16

_VALUES: Final = "values"
_LENGTHS: Final = "lengths"
_WINDOWS: Final = "windows"


def collect_tokens(
    dataset: Dataset, rows: NDArray[np.int64], engine: ActivationEngine, *, cache: Path, progress: Progress
) -> list[Ragged]:
    """Return the token activations of each row, one segment a window, in the data type of the base model.

    Equal conversations are computed once, and never again by a later run, whatever rows it takes in what order.

    Args:
        dataset: The rows.
        rows: Indices of those to compute.
        engine: The base model; the rail uses the same.
        cache: Folder of finished shards.
        progress: Where a bar is drawn.

    Raises:
        DataError: A row has more tokens than ``base.max_tokens``, or its chat template refuses it; file and row are
            named.
    """
    places = distinct(dataset, rows)
    found: dict[int, Ragged] = {}
    bar = progress.add_task("Token activations", total=len(places))

    def fill(file: Path) -> None:
        known = {digest: tokens for digest, tokens in _read(file, engine.width) if digest in places}
        found.update((place, tokens) for digest, tokens in known.items() for place in places.pop(digest))
        progress.advance(bar, len(known))

    folder = cache_folder(cache, "tokens", engine)
    for file in folder.glob("*.safetensors"):
        fill(file)
    missing = {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}
    for digests in chunks(dataset, missing, characters=_SHARD_CHARACTERS):
        fill(_write(folder, digests, compute(dataset, [missing[digest] for digest in digests], engine.tokens_of)))
    return [found[place] for place in range(rows.size)]


def _write(folder: Path, digests: Sequence[bytes], tokens: Sequence[Ragged]) -> Path:
    tensors = {
        _VALUES: torch.cat([each.values for each in tokens]),
        _LENGTHS: torch.tensor([length for each in tokens for length in each.lengths]),
        _WINDOWS: torch.tensor([len(each.lengths) for each in tokens]),
    }
    return write_chunk(folder, digests, tensors)


def _read(file: Path, width: int) -> list[tuple[bytes, Ragged]]:
    """Return the conversations of a shard and their tokens; none where the disk has damaged it."""
    digests, tensors = read_chunk(file)
    if tensors.keys() != {_VALUES, _LENGTHS, _WINDOWS}:
        return []
    values, lengths, windows = tensors[_VALUES], tensors[_LENGTHS], tensors[_WINDOWS]
    expected = (len(digests), int(windows.sum()), (int(lengths.sum()), width))
    if (windows.numel(), lengths.numel(), values.shape) != expected or min(lengths.min(), windows.min()) < 1:
        return []
    parts = [tuple(part.tolist()) for part in lengths.split(windows.tolist())]
    segments = values.split([sum(part) for part in parts])
    return [(digest, Ragged(*pair)) for digest, *pair in zip(digests, segments, parts, strict=True)]
