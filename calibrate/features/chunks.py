"""Chunks of conversations of similar length. Each is saved before the next is computed, and a later run reads it.

A cache is a folder of safetensors files. Each file holds the digests of its conversations beside the computed tensors.
So it serves any run that needs one of these conversations, in any order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from calibrate.compute.workers import RefusedError, Tensors, Work, Workers
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.runtime.files import write_whole

__all__ = ["CHUNK", "cache_folder", "chunks", "compute", "distinct", "read_chunk", "write_chunk"]

CHUNK: Final = 512
"""Largest number of conversations in a chunk. A kill loses at most one chunk."""

_DIGESTS: Final = "digests"


def cache_folder(cache: Path, kind: str, engine: BatchedBaseModel) -> Path:
    """Create and return the cache folder of this base model and site."""
    parts = [engine.spec.model_dump(), engine.fingerprint.model_dump()]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = cache / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def distinct(dataset: Dataset, rows: IntArray) -> dict[bytes, list[int]]:
    """Return, for each conversation among the rows, its digest and its places in ``rows``."""
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        places.setdefault(bytes.fromhex(dataset.conversations[row].digest()), []).append(place)
    return places


def chunks(dataset: Dataset, missing: Mapping[bytes, int], *, characters: float = math.inf) -> Iterator[list[bytes]]:
    """Yield chunks of conversations of similar length, which need little padding.

    The order is random, so that the rate and the remaining time of the progress bar are right from the start.

    Args:
        dataset: The rows.
        missing: A row for the digest of each conversation.
        characters: Largest number of characters of a chunk. A longer conversation is a chunk of its own.
    """
    lengths = {digest: len(dataset.conversations[row].plain_text()) for digest, row in missing.items()}
    found: list[list[bytes]] = []
    room = 0.0
    for digest in sorted(lengths, key=lengths.__getitem__):
        if not found or len(found[-1]) == CHUNK or lengths[digest] > room:
            found.append([])
            room = characters
        found[-1].append(digest)
        room -= lengths[digest]
    for number in np.random.default_rng(0).permutation(len(found)).tolist():
        yield found[number]


def compute(
    dataset: Dataset, missing: Mapping[bytes, int], work: Work, workers: Workers, *, characters: float = math.inf
) -> Iterator[tuple[list[bytes], Tensors]]:
    """Yield the digests and the tensors of each chunk of conversations.

    Args:
        dataset: The rows.
        missing: A row for the digest of each conversation.
        work: Maps a chunk to tensors.
        workers: Workers that run it.
        characters: As :func:`chunks` takes them.

    Raises:
        DataError: A row has more tokens than ``base.max_tokens``, or its chat template refuses it; file and row are
            named.
    """
    lots = list(chunks(dataset, missing, characters=characters))
    conversations = [[dataset.conversations[missing[digest]] for digest in lot] for lot in lots]
    try:
        for number, tensors in workers.map(work, conversations):
            yield lots[number], tensors
    except RefusedError as error:
        row = missing[lots[error.chunk][error.place]]
        raise dataset.error(row, error.problem, hint=error.hint) from error


def write_chunk(folder: Path, digests: Sequence[bytes], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Save the tensors of these conversations, and return the file."""
    joined = b"".join(digests)
    table = torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(len(digests), -1)
    file = folder / f"{hashlib.sha256(joined).hexdigest()}.safetensors"
    write_whole(file, save({_DIGESTS: table, **tensors}))
    return file


def read_chunk(file: Path) -> tuple[list[bytes], dict[str, torch.Tensor]]:
    """Return the digests and the tensors of a chunk, empty if the file is damaged.

    Tensors are mapped from the file. Pages that are not read take no memory.
    """
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError):
        return [], {}
    table = tensors.pop(_DIGESTS, None)
    return ([], {}) if table is None else ([digest.tobytes() for digest in table.numpy()], tensors)
