"""Mean-pooled activations of the rows: computed a few hundred at a time, each lot saved before the next begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
from ctd_guardrail.errors import ActivationError, InputError, OverloadedError

__all__ = ["CHUNK", "pool_activations"]

FloatArray = NDArray[np.float32]

CHUNK: Final = 512
"""Conversations of one file in the cache: what a kill can cost."""

_POOLED: Final = "pooled"
_DIGESTS: Final = "digests"


def pool_activations(
    dataset: Dataset, rows: NDArray[np.int64], engine: ActivationEngine, *, cache: Path, progress: Progress
) -> FloatArray:
    """Return the mean over each row's token activations, shape [rows, width].

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
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        places.setdefault(bytes.fromhex(dataset.conversations[row].digest()), []).append(place)
    pooled = np.empty((rows.size, engine.fingerprint.hidden_size), dtype=np.float32)
    bar = progress.add_task("Activations", total=len(places))

    def fill(digests: Sequence[bytes], chunk: FloatArray) -> None:
        known = [(number, places.pop(digest)) for number, digest in enumerate(digests) if digest in places]
        for number, wanted in known:
            pooled[wanted] = chunk[number]
        progress.advance(bar, len(known))

    folder = cache / "activations" / _key(engine)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.safetensors"):
        fill(*_read(file, pooled.shape[1]))
    for digests in _chunks(dataset, {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}):
        chunk = _compute(dataset, [int(rows[places[digest][0]]) for digest in digests], engine)
        _write(folder, digests, chunk)
        fill(digests, chunk)
    return pooled


def _chunks(dataset: Dataset, missing: dict[bytes, int]) -> Iterator[list[bytes]]:
    """Yield chunks of conversations of like length, which leaves little padding, short and long in turns.

    In random order, so that the bar's rate and time to go are right from the start.
    """
    ordered = sorted(missing, key=lambda digest: len(dataset.conversations[missing[digest]].plain_text()))
    starts = np.arange(0, len(ordered), CHUNK)
    for start in np.random.default_rng(0).permutation(starts).tolist():
        yield ordered[start : start + CHUNK]


def _compute(dataset: Dataset, rows: Sequence[int], engine: ActivationEngine) -> FloatArray:
    try:
        return engine.run_many([dataset.conversations[row] for row in rows], segment_mean)
    except OverloadedError:
        raise
    except (InputError, ActivationError):
        # One of them is to blame; alone, each says whether it is.
        for row in rows:
            try:
                engine.run_many([dataset.conversations[row]], segment_mean)
            except (InputError, ActivationError) as error:
                raise dataset.error(row, error.problem, hint=error.hint) from error
        raise


def _key(engine: ActivationEngine) -> str:
    """Hash what activations depend on beside the conversation."""
    parts = [engine.spec.model_dump(), engine.fingerprint.model_dump()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, digests: Sequence[bytes], chunk: FloatArray) -> None:
    joined = b"".join(digests)
    table = np.frombuffer(joined, dtype=np.uint8).reshape(len(digests), -1)
    name = hashlib.sha256(joined).hexdigest()
    write_atomically(folder / f"{name}.safetensors", save({_DIGESTS: table, _POOLED: chunk}))


def _read(file: Path, width: int) -> tuple[list[bytes], FloatArray]:
    """Return the conversations of a chunk and their activations; none where the disk has damaged it."""
    nothing: tuple[list[bytes], FloatArray] = [], np.empty((0, width), dtype=np.float32)
    try:
        tensors = load(file.read_bytes())
    except (OSError, SafetensorError):
        return nothing
    table, chunk = tensors.get(_DIGESTS), tensors.get(_POOLED)
    if table is None or chunk is None or chunk.shape != (len(table), width) or chunk.dtype != np.float32:
        return nothing
    return [digest.tobytes() for digest in table], chunk
