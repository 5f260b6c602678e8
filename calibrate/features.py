"""Mean-pooled activations of the rows, chunk by chunk, each saved before the next begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.numpy import load, save

from calibrate.cache import write_atomically
from calibrate.data import Dataset
from ctd_guardrail.activations.engine import ActivationEngine
from ctd_guardrail.activations.ragged import segment_mean
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ActivationError, InputError, OverloadedError

__all__ = ["CHUNK", "pool_activations"]

CHUNK: Final = 256
"""Rows of one file in the cache: what a kill can cost."""

_TENSOR: Final = "pooled"


def pool_activations(
    dataset: Dataset, rows: NDArray[np.int64], engine: ActivationEngine, *, cache: Path, progress: Progress
) -> NDArray[np.float32]:
    """Return the mean over each row's token activations, shape [rows, width].

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
    pooled = np.empty((rows.size, engine.fingerprint.hidden_size), dtype=np.float32)
    bar = progress.add_task("Activations", total=rows.size)
    for start in range(0, rows.size, CHUNK):
        part = rows[start : start + CHUNK]
        conversations = [dataset.conversations[row] for row in part]
        file = cache / f"{_key(engine, conversations)}.safetensors"
        chunk = _read(file, (part.size, pooled.shape[1]))
        if chunk is None:
            chunk = _compute(dataset, part, conversations, engine)
            write_atomically(file, save({_TENSOR: chunk}))
        pooled[start : start + CHUNK] = chunk
        progress.advance(bar, part.size)
    return pooled


def _key(engine: ActivationEngine, conversations: Sequence[Conversation]) -> str:
    """Hash everything that the activations depend on."""
    parts = [
        engine.spec.model_dump(),
        engine.fingerprint.model_dump(),
        [conversation.digest() for conversation in conversations],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return a finished chunk, or None where there is none or the disk has damaged it."""
    try:
        chunk = load(file.read_bytes()).get(_TENSOR)
    except (OSError, SafetensorError):
        return None
    return chunk if chunk is not None and chunk.shape == shape and chunk.dtype == np.float32 else None


def _compute(
    dataset: Dataset, rows: NDArray[np.int64], conversations: Sequence[Conversation], engine: ActivationEngine
) -> NDArray[np.float32]:
    try:
        return engine.run_many(conversations, segment_mean)
    except OverloadedError:
        raise
    except (InputError, ActivationError):
        # One of them is to blame; alone, each says whether it is.
        for row, conversation in zip(rows.tolist(), conversations, strict=True):
            try:
                engine.run_many([conversation], segment_mean)
            except (InputError, ActivationError) as error:
                raise dataset.error(row, error.problem, hint=error.hint) from error
        raise
