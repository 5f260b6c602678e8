"""Activations of all tokens of the rows, for probes that read more than the mean.

8,000 conversations of 100 tokens take a gigabyte at width 768 in bfloat16. So only a sample of the rows is cached, in
the data type of the base model. Shards are written one by one and mapped into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from rich.progress import Progress

from calibrate.compute.workers import InProcess, Tensors, Workers
from calibrate.features.chunks import cache_folder, compute, distinct, read_chunk, write_chunk
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.text.conversation import Conversation

__all__ = ["collect_tokens", "token_shard"]

# Nearly every token has at least one character. So this bounds a shard, and the memory while it is computed.
_SHARD_CHARACTERS: Final = 1 << 16

_VALUES: Final = "values"
_OFFSETS: Final = "offsets"
_WINDOWS: Final = "windows"


def collect_tokens(
    dataset: Dataset,
    rows: IntArray,
    engine: BatchedBaseModel,
    *,
    cache: Path,
    progress: Progress,
    workers: Workers | None = None,
) -> list[Ragged]:
    """Return the token activations of each row, one segment a window, in the data type of the base model.

    Equal conversations are computed once, and a later run reads them from the cache.

    Args:
        dataset: The rows.
        rows: Indices of the rows to compute.
        engine: The base model; the rail uses the same.
        cache: Folder of finished shards.
        progress: Progress bars.
        workers: Workers that compute; None: this process.

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
    for digests, tensors in compute(
        dataset, missing, token_shard, workers or InProcess(engine), characters=_SHARD_CHARACTERS
    ):
        fill(write_chunk(folder, digests, tensors))
    return [found[place] for place in range(rows.size)]


def token_shard(engine: BatchedBaseModel, conversations: Sequence[Conversation]) -> Tensors:
    """Return the tensors to save for a chunk.

    - ``values``: all tokens one after the other, shape [N, width].
    - ``offsets``: start of each window among them, then N, shape [windows + 1].
    - ``windows``: number of windows of each conversation.
    """
    tokens = engine.tokens_of(conversations)
    lengths = torch.tensor([0, *(length for each in tokens for length in each.lengths)])
    return {
        _VALUES: torch.cat([each.values for each in tokens]),
        _OFFSETS: lengths.cumsum(0),
        _WINDOWS: torch.tensor([len(each.lengths) for each in tokens]),
    }


def _read(file: Path, width: int) -> list[tuple[bytes, Ragged]]:
    """Return the conversations of a shard and their tokens, empty if the file is damaged."""
    digests, tensors = read_chunk(file)
    if tensors.keys() != {_VALUES, _OFFSETS, _WINDOWS}:
        return []
    values, offsets, windows = tensors[_VALUES], tensors[_OFFSETS], tensors[_WINDOWS]
    expected = (len(digests), int(windows.sum()) + 1, (int(offsets[-1]), width))
    lengths = offsets.diff()
    if (windows.numel(), offsets.numel(), values.shape) != expected or min(lengths.min(), windows.min()) < 1:
        return []
    parts = [tuple(part.tolist()) for part in lengths.split(windows.tolist())]
    segments = values.split([sum(part) for part in parts])
    return [(digest, Ragged(*pair)) for digest, *pair in zip(digests, segments, parts, strict=True)]
