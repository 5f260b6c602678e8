"""Chunks of conversations of like length, each saved before the next is computed, and found again by a later run.

A cache is a folder of safetensors files. Each holds the digests of its conversations beside what was computed of them,
so that it serves any run that meets one of them again, whatever rows it takes in what order.
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
"""Conversations of one chunk at most: what a kill can cost."""

_DIGESTS: Final = "digests"


def cache_folder(cache: Path, kind: str, engine: BatchedBaseModel) -> Path:
    """Make and return the folder of everything that was computed by this base model at this site."""
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
    """Yield chunks of conversations of like length, which leaves little padding, short and long in turns.

    In random order, so that the bar's rate and time to go are right from the start.

    Args:
        dataset: The rows.
        missing: A row for the digest of each conversation.
        characters: A chunk is closed before its text exceeds this. A longer conversation is a chunk of its own.
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
    """Yield the digests of each chunk of conversations, and what the base model makes of them.

    Args:
        dataset: The rows.
        missing: A row for the digest of each conversation.
        work: Maps a chunk to what is made of it.
        workers: Who does it.
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
    """Save what was computed of these conversations, and return the file."""
    joined = b"".join(digests)
    table = torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(len(digests), -1)
    file = folder / f"{hashlib.sha256(joined).hexdigest()}.safetensors"
    write_whole(file, save({_DIGESTS: table, **tensors}))
    return file


def read_chunk(file: Path) -> tuple[list[bytes], dict[str, torch.Tensor]]:
    """Return the conversations of a chunk and what was computed of them; nothing where the disk has damaged it.

    Tensors are mapped from the file: what is not touched takes no memory.
    """
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError):
        return [], {}
    table = tensors.pop(_DIGESTS, None)
    return ([], {}) if table is None else ([digest.tobytes() for digest in table.numpy()], tensors)
