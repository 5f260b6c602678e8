"""Rows, activations and expert scores of one setting, which all seeds share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.paper.plan import Plan, Setting
from calibrate.expert_scores.ask import ask_expert
from calibrate.features import PooledRows, collect_tokens, pool_activations
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import find_clusters
from calibrate.train import SafetyRows
from calibrate.train.train import layer_columns
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.config.experts import ExpertConfig
from ctd_guardrail.errors import DataError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["Material", "load_material"]


_EXPERT_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Material:
    """The rows that are drawn from.

    Attributes:
        pooled: Mean-pooled activations of the rows' windows.
        tokens: Token activations of each row's windows; None if no recipe of the setting reads them.
        layers: Layers that lie side by side in both.
        means: Means over all tokens of each row, which the paper's probes read, shape [n, width].
        labels: 1 = unsafe, shape [n].
        experts: P(unsafe) by the expert's name, each of shape [n].
        clusters: Number of the cluster of each row, shape [n]. No cluster is in two files.
        file_of_row: File of each row, shape [n].
        groups: Group of each row, shape [n]; its file if there are several files.
        safety: Rows of the safety probe from another source; None if each seed draws them.
    """

    pooled: PooledRows
    tokens: list[Ragged] | None
    layers: tuple[int, ...]
    means: Float32Array
    labels: FloatArray
    experts: dict[str, FloatArray]
    clusters: IntArray
    file_of_row: IntArray
    groups: NDArray[np.str_]
    safety: SafetyRows | None

    def reading(self, layers: tuple[int, ...]) -> Material:
        """Return the material with the activations of some layers only."""
        if layers == self.layers:
            return self
        keep = layer_columns(layers, self.layers, self.pooled.values.shape[1])
        safety = self.safety
        if safety is not None and isinstance(safety.pooled, PooledRows):
            safety = replace(safety, pooled=safety.pooled.columns(keep), tokens=_columns(safety.tokens, keep))
        return replace(
            self, pooled=self.pooled.columns(keep), tokens=_columns(self.tokens, keep), layers=layers, safety=safety
        )


def load_material(
    plan: Plan, setting: Setting, engine: BatchedBaseModel, *, folder: Path, cache: Path, progress: Progress
) -> Material:
    """Read the setting's files, compute their activations and ask the experts; the cache keeps both.

    Args:
        plan: Plan with the experts.
        setting: Setting with the files.
        engine: The base model.
        folder: Folder of relative paths.
        cache: Folder of activations and expert scores.
        progress: Progress bars.

    Raises:
        DataError: A file or a row is malformed, or no row is in the setting's safety group.
        ExpertError: An expert failed. Its scores so far are saved.
    """
    dataset = read_dataset([folder / file for file in setting.data])
    source = setting.safety
    datasets = [dataset, *([read_dataset([folder / file for file in source.data])] if source.data else [])]
    pooled = PooledRows.concatenate(
        [pool_activations(part, np.arange(len(part)), engine, cache=cache, progress=progress) for part in datasets]
    )
    labels, clusters = np.concatenate([part.labels for part in datasets]), find_clusters(*datasets)
    groups = np.array(_groups(dataset))
    of_safety = np.arange(labels.size) >= len(dataset)
    if source.group:
        of_safety[: len(dataset)] = groups == source.group
        if not of_safety.any():
            raise DataError(f"no row is of group {source.group!r}", hint="See the rows' `group` field")
    drawn = np.flatnonzero(~of_safety)
    # Near-duplicates: each cluster that is drawn belongs to one file, and the safety probe's source has none of it.
    first_file = np.full(clusters.max() + 1, len(dataset.files))
    np.minimum.at(first_file, clusters[drawn], dataset.file_of_row[drawn])
    drawn = drawn[dataset.file_of_row[drawn] == first_file[clusters[drawn]]]
    safety = np.flatnonzero(of_safety & ~np.isin(clusters, clusters[drawn]))
    chosen = pooled.take(drawn)
    tokens = None
    if setting.token_recipes:
        tokens = [
            row
            for part in datasets
            for row in collect_tokens(part, np.arange(len(part)), engine, cache=cache, progress=progress)
        ]
    return Material(
        pooled=chosen,
        tokens=_take(tokens, drawn),
        layers=plan.base.layers,
        means=_row_means(chosen, plan),
        labels=labels[drawn],
        experts={
            name: _expert_scores(expert, dataset, drawn, cache, progress) for name, expert in plan.experts.items()
        },
        clusters=clusters[drawn],
        file_of_row=dataset.file_of_row[drawn],
        groups=groups[drawn],
        # Numbered from 0, so that the rows of one source do not depend on other files.
        safety=SafetyRows(
            pooled.take(safety),
            labels[safety],
            np.unique(clusters[safety], return_inverse=True)[1],
            _take(tokens, safety),
        )
        if safety.size
        else None,
    )


def _take(tokens: list[Ragged] | None, rows: IntArray) -> list[Ragged] | None:
    return None if tokens is None else [tokens[row] for row in rows.tolist()]


def _columns(tokens: list[Ragged] | None, keep: IntArray) -> list[Ragged] | None:
    return None if tokens is None else [Ragged(row.values[:, keep], row.lengths) for row in tokens]


def _row_means(pooled: PooledRows, plan: Plan) -> Float32Array:
    starts = np.cumsum(pooled.windows) - pooled.windows
    lengths = pooled.lengths.astype(np.float32)
    sums: Float32Array = np.add.reduceat(pooled.values * lengths[:, None], starts)
    means: Float32Array = np.divide(sums, np.add.reduceat(lengths, starts)[:, None])
    by_layer = means.reshape(len(means), len(plan.base.layers), -1)
    return by_layer[:, plan.ridge_layers].reshape(len(means), -1)


def _groups(dataset: Dataset) -> list[str]:
    names = [file.name.split(".")[0] for file in dataset.files]
    if len(names) > 1 or dataset.groups is None:
        return [names[file] for file in dataset.file_of_row]
    return dataset.groups


def _expert_scores(
    expert: str | ExpertConfig, dataset: Dataset, rows: IntArray, cache: Path, progress: Progress
) -> FloatArray:
    if isinstance(expert, str):
        recorded = read_dataset(dataset.files, expert_column=expert).expert
        if recorded is None:
            raise DataError("there are no recorded expert scores", hint="Name their field under `experts`")
        return recorded[rows]

    async def ask() -> FloatArray:
        judge = build_expert(expert)
        try:
            scores = await ask_expert(
                dataset, rows, judge, log=cache / "expert.sqlite", concurrency=_EXPERT_CONCURRENCY,
                progress=progress,
            )  # fmt: skip
        finally:
            await judge.aclose()
        return scores.p

    return asyncio.run(ask())
