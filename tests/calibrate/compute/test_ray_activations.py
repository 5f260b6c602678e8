"""A cluster computes what the plain loop computes, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from calibrate.compute import ray as activations
from calibrate.compute.cluster import connect
from calibrate.compute.ray import RayWorkers
from calibrate.config.cluster import RayConfig
from calibrate.features import chunks, collect_tokens, pool_activations
from calibrate.features.chunks import read_chunk
from calibrate.rows.data import Dataset, read_dataset
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ActivationError, ConfigError, DataError
from tests.support.internals import shorten_shards, source_of


@pytest.fixture
def engine(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchedBaseModel]:
    shorten_shards(monkeypatch)
    spec = ActivationSpec(model=str(tiny_bert), layers=(1, 2), site="residual", max_tokens=400)
    engine = BatchedBaseModel(HuggingFaceSource(spec, device="cpu"))
    yield engine
    engine.close()


def test_shards_of_both_are_the_same_files(
    dataset: Dataset, engine: BatchedBaseModel, run_on: RayConfig, tmp_path: Path
) -> None:
    rows, caches = np.arange(len(dataset)), [tmp_path / "plain", tmp_path / "ray"]
    workers = RayWorkers(run_on.model_copy(update={"actors": 1}), engine, device="cpu")
    with Progress(disable=True) as progress:
        plain = collect_tokens(dataset, rows, engine, cache=caches[0], progress=progress)
        far = collect_tokens(dataset, rows, engine, cache=caches[1], progress=progress, workers=workers)
    assert all(torch.equal(a.values, b.values) and a.lengths == b.lengths for a, b in zip(plain, far, strict=True))
    here, there = ({path.name: path.read_bytes() for path in cache.rglob("*.safetensors")} for cache in caches)
    assert len(here) > 5
    assert here == there
    digests, shard = read_chunk(next(caches[1].rglob("*.safetensors")))
    assert shard["offsets"][0] == 0
    assert shard["values"].shape == (int(shard["offsets"][-1]), 64)
    assert shard["windows"].numel() == len(digests)


def test_pooled_rows_are_equal_and_the_plain_loop_goes_on_from_them(
    dataset: Dataset, engine: BatchedBaseModel, run_on: RayConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 16)
    every, workers, cache = np.arange(len(dataset)), RayWorkers(run_on, engine, device="cpu"), tmp_path / "ray"
    with Progress(disable=True) as progress:
        plain = pool_activations(dataset, every, engine, cache=tmp_path / "plain", progress=progress)
        far = pool_activations(dataset, every, engine, cache=cache, progress=progress, workers=workers)
        files = sorted(cache.rglob("*.safetensors"))
        assert len(files) == 4
        files[0].unlink()
        again = pool_activations(dataset, every, engine, cache=cache, progress=progress)
    assert sorted(cache.rglob("*.safetensors")) == files
    for rows in (far, again):
        np.testing.assert_array_equal(rows.values, plain.values)
        np.testing.assert_array_equal(rows.lengths, plain.lengths)
        np.testing.assert_array_equal(rows.windows, plain.windows)


@pytest.mark.parametrize("config", [{"actors": 64}, {"gpus_per_actor": 0.5}], ids=str)
def test_actors_that_no_machine_has_room_for_are_refused(run_on: RayConfig, config: dict[str, Any]) -> None:
    with (
        pytest.raises(ConfigError, match=r"run_on\.actors: .* do not fit"),
        connect(run_on.model_copy(update=config)),
    ):
        pytest.fail("there is no such cluster")


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> RayConfig:
    """The actors' own code, run here."""

    def map_here(
        _config: RayConfig, worker: Any, arguments: tuple[Any, ...], rows: Sequence[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        actor = worker(*arguments)
        for row in rows:
            yield {name: column[0] for name, column in actor({k: np.array([v]) for k, v in row.items()}).items()}

    monkeypatch.setattr(activations, "map_rows", map_here)
    return RayConfig(type="ray")


def test_a_row_that_an_actor_refuses_is_named(
    tmp_path: Path, engine: BatchedBaseModel, without_processes: RayConfig
) -> None:
    file = tmp_path / "overlong.jsonl"
    file.write_text('{"text": "short", "label": 0}\n{"text": "' + "word " * 401 + '", "label": 1}\n')
    workers = RayWorkers(without_processes, engine, device="cpu")
    with pytest.raises(DataError, match="more than 400 tokens") as caught, Progress(disable=True) as progress:
        pool_activations(read_dataset([file]), np.arange(2), engine, cache=tmp_path, progress=progress, workers=workers)
    assert (caught.value.file, caught.value.row) == (file, 2)


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "0" * 64}, {"tokenizer_sha256": "0" * 64}, {"template_sha256": "0" * 64}], ids=str
)
def test_an_actor_with_another_base_model_is_refused(
    dataset: Dataset,
    engine: BatchedBaseModel,
    without_processes: RayConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
) -> None:
    monkeypatch.setattr(source_of(engine), "_fingerprint", engine.fingerprint.model_copy(update=change))
    workers = RayWorkers(without_processes, engine, device="cpu")
    with pytest.raises(ActivationError, match="an actor has loaded another"), Progress(disable=True) as progress:
        pool_activations(dataset, np.arange(4), engine, cache=tmp_path, progress=progress, workers=workers)


def test_an_actor_without_its_base_model_says_so(
    dataset: Dataset, engine: BatchedBaseModel, without_processes: RayConfig, tmp_path: Path
) -> None:
    nowhere = engine.spec.model_copy(update={"model": str(tmp_path / "nowhere")})
    source_of(engine)._spec = nowhere
    workers = RayWorkers(without_processes, engine, device="cpu")
    with pytest.raises(ActivationError, match="cannot be opened"), Progress(disable=True) as progress:
        pool_activations(dataset, np.arange(4), engine, cache=tmp_path, progress=progress, workers=workers)
