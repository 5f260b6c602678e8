"""Activations are computed once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from calibrate.features import CHUNK, pool_activations
from calibrate.rows.data import Dataset, read_dataset
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError, DataError
from ctd_guardrail.probes.ragged import segment_mean

ROWS = 2 * CHUNK + 10


@pytest.fixture
def dataset(make_rows: Callable[..., list[dict[str, Any]]], write_rows: Callable[..., Path]) -> Dataset:
    return read_dataset([write_rows(make_rows(ROWS))])


@pytest.fixture
def engine(tiny_bert: Path) -> Iterator[BatchedBaseModel]:
    spec = ActivationSpec(model=str(tiny_bert), layers=(1,), site="residual", max_tokens=100)
    engine = BatchedBaseModel(HuggingFaceSource(spec, device="cpu"))
    yield engine
    engine.close()


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of windows of every forward pass."""
    counts: list[int] = []
    original = HuggingFaceSource.activations

    def counting(self: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> Any:
        counts.append(len(windows))
        return original(self, windows)

    monkeypatch.setattr(HuggingFaceSource, "activations", counting)
    return counts


def _pool(dataset: Dataset, engine: BatchedBaseModel, cache: Path) -> Any:
    cache.mkdir(exist_ok=True)
    with Progress(disable=True) as progress:
        return pool_activations(dataset, np.arange(len(dataset)), engine, cache=cache, progress=progress)


def test_they_are_the_engines_own(dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path) -> None:
    pooled = _pool(dataset, engine, tmp_path / "cache")
    assert pooled.values.shape == (ROWS, 32)
    assert pooled.values.dtype == np.float32
    some = [0, CHUNK, ROWS - 1]
    alone = np.concatenate(engine.run_many([dataset.conversations[row] for row in some], segment_mean))
    np.testing.assert_allclose(pooled.values[some], alone, atol=1e-5)


def test_a_second_run_computes_nothing(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, forwarded: list[int]
) -> None:
    first = _pool(dataset, engine, tmp_path / "cache")
    assert sum(forwarded) == ROWS
    np.testing.assert_array_equal(_pool(dataset, engine, tmp_path / "cache").values, first.values)
    assert sum(forwarded) == ROWS


def test_a_stopped_run_goes_on_after_its_last_chunk(
    dataset: Dataset,
    engine: BatchedBaseModel,
    tmp_path: Path,
    forwarded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = BatchedBaseModel.run_many
    calls = 0

    def stop_at_the_second(self: BatchedBaseModel, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(BatchedBaseModel, "run_many", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        _pool(dataset, engine, tmp_path / "cache")
    done = sum(forwarded)
    assert 0 < done <= CHUNK
    _pool(dataset, engine, tmp_path / "cache")
    assert sum(forwarded) == ROWS


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_chunk_is_computed_again(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, forwarded: list[int], damage: bytes | None
) -> None:
    first = _pool(dataset, engine, tmp_path / "cache")
    chunk = next((tmp_path / "cache").rglob("*.safetensors"))
    chunk.write_bytes(chunk.read_bytes()[:-8] if damage is None else damage)
    np.testing.assert_allclose(_pool(dataset, engine, tmp_path / "cache").values, first.values, atol=1e-5)
    assert ROWS < sum(forwarded) <= ROWS + CHUNK


def test_other_rows_in_another_order_reuse_what_is_there(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, forwarded: list[int]
) -> None:
    every = np.arange(len(dataset))
    with Progress(disable=True) as progress:
        some = pool_activations(dataset, every[:300], engine, cache=tmp_path, progress=progress)
        back = pool_activations(dataset, every[::-1], engine, cache=tmp_path, progress=progress)
    assert sum(forwarded) == ROWS
    np.testing.assert_array_equal(back.values[::-1][:300], some.values)


def test_equal_conversations_are_computed_once(
    write_rows: Callable[..., Path], engine: BatchedBaseModel, tmp_path: Path, forwarded: list[int]
) -> None:
    rows = [{"text": "same" if i % 3 else f"other {i}", "label": i % 2} for i in range(30)]
    pooled = _pool(read_dataset([write_rows(rows)]), engine, tmp_path / "cache")
    assert sum(forwarded) == 11
    assert (pooled.values[1] == pooled.values[29]).all()
    assert not (pooled.values[0] == pooled.values[1]).all()


def test_another_layer_is_another_entry(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, tiny_bert: Path
) -> None:
    first = _pool(dataset, engine, tmp_path / "cache")
    deeper = BatchedBaseModel(
        HuggingFaceSource(ActivationSpec(model=str(tiny_bert), layers=(2,), site="residual"), device="cpu")
    )
    assert not np.allclose(_pool(dataset, deeper, tmp_path / "cache").values, first.values)
    deeper.close()


def test_an_overlong_row_is_named(
    make_rows: Callable[..., list[dict[str, Any]]],
    write_rows: Callable[..., Path],
    engine: BatchedBaseModel,
    tmp_path: Path,
) -> None:
    rows = make_rows(CHUNK + 20)
    rows[CHUNK + 3]["text"] = "word " * 101
    file = write_rows(rows)
    with pytest.raises(DataError, match="more than 100 tokens") as caught:
        _pool(read_dataset([file]), engine, tmp_path / "cache")
    assert (caught.value.file, caught.value.row) == (file, CHUNK + 4)


def test_a_failure_of_the_model_is_not_blamed_on_a_row(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path
) -> None:
    engine.close()
    with pytest.raises(ActivationError, match="shutting down"):
        _pool(dataset, engine, tmp_path / "cache")
