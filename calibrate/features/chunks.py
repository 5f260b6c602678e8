"""Chunks of conversations of like length, each saved before the next is computed, and found again by a later run.

A cache is a folder of safetensors files. Each holds the digests of its conversations beside what was computed of them,
so that it serves any run that meets one of them again, whatever rows it takes in what order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from calibrate.cache import write_atomically
from calibrate.data import Dataset
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ActivationError, InputError, OverloadedError

__all__ = ["CHUNK", "cache_folder", "chunks", "compute", "distinct", "read_chunk", "write_chunk"]

CHUNK: Final = 512
"""Conversations of one chunk: what a kill can cost."""

_DIGESTS: Final = "digests"

Result = TypeVar("Result")


def cache_folder(cache: Path, kind: str, engine: ActivationEngine) -> Path:
    """Make and return the folder of everything that was computed by this base model at this site."""
    parts = [engine.spec.model_dump(), engine.fingerprint.model_dump()]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = cache / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def distinct(dataset: Dataset, rows: NDArray[np.int64]) -> dict[bytes, list[int]]:
    """Return, for each conversation among the rows, its digest and its places in ``rows``."""
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        places.setdefault(bytes.fromhex(dataset.conversations[row].digest()), []).append(place)
    return places


def chunks(dataset: Dataset, missing: Mapping[bytes, int], size: int = CHUNK) -> Iterator[list[bytes]]:
    """Yield chunks of conversations of like length, which leaves little padding, short and long in turns.

    In random order, so that the bar's rate and time to go are right from the start.

    Args:
        dataset: The rows.
        missing: A row for the digest of each conversation.
        size: Conversations of one chunk.
    """
    ordered = sorted(missing, key=lambda digest: len(dataset.conversations[missing[digest]].plain_text()))
    starts = np.arange(0, len(ordered), size)
    for start in np.random.default_rng(0).permutation(starts).tolist():
        yield ordered[start : start + size]


def compute(
    dataset: Dataset, rows: Sequence[int], call: Callable[[Sequence[Conversation]], list[Result]]
) -> list[Result]:
    """Return what the base model makes of the rows.

    Raises:
        DataError: A row has more tokens than ``base.max_tokens``, or its chat template refuses it; file and row are
            named.
    """
    try:
        return call([dataset.conversations[row] for row in rows])
    except OverloadedError:
        raise
    except (InputError, ActivationError):
        # One of them is to blame; alone, each says whether it is.
        for row in rows:
            try:
                call([dataset.conversations[row]])
            except (InputError, ActivationError) as error:
                raise dataset.error(row, error.problem, hint=error.hint) from error
        raise


def write_chunk(folder: Path, digests: Sequence[bytes], tensors: Mapping[str, torch.Tensor]) -> None:
    """Save what was computed of these conversations."""
    joined = b"".join(digests)
    table = torch.frombuffer(bytearray(joined), dtype=torch.uint8).reshape(len(digests), -1)
    name = hashlib.sha256(joined).hexdigest()
    write_atomically(folder / f"{name}.safetensors", save({_DIGESTS: table, **tensors}))


def read_chunk(file: Path) -> tuple[list[bytes], dict[str, torch.Tensor]]:
    """Return the conversations of a chunk and what was computed of them; nothing where the disk has damaged it."""
    try:
        tensors = load(file.read_bytes())
    except (OSError, SafetensorError):
        return [], {}
    table = tensors.pop(_DIGESTS, None)
    return ([], {}) if table is None else ([digest.tobytes() for digest in table.numpy()], tensors)
