"""Token activations are kept in shards that a later run finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from calibrate.features import collect_tokens, pool_activations
from calibrate.rows.data import Dataset, read_dataset
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from tests.support.internals import shorten_shards

ROWS = 60


@pytest.fixture
def dataset(make_rows: Callable[..., list[dict[str, Any]]], write_rows: Callable[..., Path]) -> Dataset:
    rows = make_rows(ROWS)
    rows[7]["text"] = "a long row " * 30
    rows[9]["text"] = rows[8]["text"]
    return read_dataset([write_rows(rows)])


@pytest.fixture
def engine(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchedBaseModel]:
    shorten_shards(monkeypatch)
    spec = ActivationSpec(model=str(tiny_bert), layers=(1, 2), site="residual", dtype="bfloat16", max_tokens=400)
    engine = BatchedBaseModel(HuggingFaceSource(spec, device="cpu"))
    yield engine
    engine.close()


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of tokens of every forward pass."""
    counts: list[int] = []
    original = HuggingFaceSource.activations

    def counting(self: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> Any:
        counts.append(sum(map(len, windows)))
        return original(self, windows)

    monkeypatch.setattr(HuggingFaceSource, "activations", counting)
    return counts


def _collect(dataset: Dataset, rows: Sequence[int], engine: BatchedBaseModel, cache: Path) -> list[Ragged]:
    with Progress(disable=True) as progress:
        return collect_tokens(dataset, np.array(rows), engine, cache=cache, progress=progress)


def test_they_are_what_the_pooled_rows_are_means_of(dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path) -> None:
    rows = np.arange(ROWS)
    found = _collect(dataset, rows.tolist(), engine, tmp_path)
    with Progress(disable=True) as progress:
        pooled = pool_activations(dataset, rows, engine, cache=tmp_path, progress=progress)
    assert all(each.values.dtype == torch.bfloat16 for each in found)
    assert [len(each.lengths) for each in found] == pooled.windows.tolist()
    assert pooled.windows[7] > 1
    assert [length for each in found for length in each.lengths] == pooled.lengths.tolist()
    means = torch.cat([segment_mean(each) for each in found]).numpy()
    # bfloat16 holds eight bits, and another batch rounds differently.
    np.testing.assert_allclose(means, pooled.values, atol=0.02)


def test_a_second_run_computes_nothing_and_maps_what_it_returns(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, forwarded: list[int]
) -> None:
    first = _collect(dataset, range(ROWS), engine, tmp_path)
    computed = len(forwarded)
    shards = list((tmp_path / "tokens").rglob("*.safetensors"))
    assert len(shards) > 5
    again = _collect(dataset, range(ROWS)[::-1], engine, tmp_path)[::-1]
    assert len(forwarded) == computed
    for old, new in zip(first, again, strict=True):
        assert torch.equal(old.values, new.values)
        assert old.lengths == new.lengths
    assert first[8].values.data_ptr() == first[9].values.data_ptr()


def test_a_stopped_run_goes_on_after_its_last_shard(
    dataset: Dataset,
    engine: BatchedBaseModel,
    tmp_path: Path,
    forwarded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = BatchedBaseModel.tokens_of, 0

    def stop_at_the_third(self: BatchedBaseModel, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(BatchedBaseModel, "tokens_of", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        _collect(dataset, range(ROWS), engine, tmp_path)
    done = sum(forwarded)
    assert done > 0
    whole = _collect(dataset, range(ROWS), engine, tmp_path)
    different = {dataset.conversations[row].digest(): sum(whole[row].lengths) for row in range(ROWS)}
    assert sum(forwarded) == sum(different.values())


@pytest.mark.parametrize("damage", [b"", b"no safetensors"])
def test_a_damaged_shard_is_computed_again(
    dataset: Dataset, engine: BatchedBaseModel, tmp_path: Path, damage: bytes
) -> None:
    first = [each.values.clone() for each in _collect(dataset, range(ROWS), engine, tmp_path)]
    next((tmp_path / "tokens").rglob("*.safetensors")).write_bytes(damage)
    again = _collect(dataset, range(ROWS), engine, tmp_path)
    assert all(torch.equal(old, new.values) for old, new in zip(first, again, strict=True))


def test_an_overlong_row_is_named(write_rows: Callable[..., Path], engine: BatchedBaseModel, tmp_path: Path) -> None:
    rows = [{"text": "short", "label": 0}, {"text": "word " * 401, "label": 1}]
    with pytest.raises(DataError, match="more than 400 tokens") as caught:
        _collect(read_dataset([write_rows(rows)]), [0, 1], engine, tmp_path)
    assert caught.value.row == 2
