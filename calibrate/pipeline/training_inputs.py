"""Inputs of a training beside mean activations: tokens of a sample of the rows, and rows inside benign context."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from rich.progress import Progress

from calibrate.compute.workers import Workers
from calibrate.config.recipe import Recipe
from calibrate.features import PooledRows, collect_tokens, pool_activations
from calibrate.rows.data import Dataset
from calibrate.rows.padding import pad_rows
from calibrate.train import PaddedRows, SafetyRows, TokenRows
from calibrate.train.crossfit import assign_folds
from calibrate.train.rows import TrainingRows
from calibrate.train.selection import SELECTION_ROWS, sample_rows
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["TrainingInputs"]

# Training rows whose token activations are kept in the cache: a gigabyte at width 768 in bfloat16.
_TOKEN_ROWS: Final = 8000


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """Computes the inputs of a training.

    Attributes:
        base_model: The base model, at all layers that may be chosen.
        recipe: The candidates.
        seed: Seed of all samples.
        cache: Folder of finished activations.
        progress: Progress bars.
        workers: Workers that compute activations.
    """

    base_model: BatchedBaseModel
    recipe: Recipe
    seed: int
    cache: Path
    progress: Progress = field(repr=False)
    workers: Workers

    def safety_rows(self, dataset: Dataset, rows: IntArray, clusters: IntArray) -> SafetyRows:
        """Return the rows of another source. If a kind reads tokens, a sample of them.

        Args:
            dataset: The source.
            rows: Indices of the rows to use.
            clusters: Cluster of each, shape [rows].
        """
        if not self.recipe.reads_tokens:
            return SafetyRows(self._pool(dataset, rows), dataset.labels[rows], clusters)
        kept = sample_rows(clusters, _TOKEN_ROWS, seed=self.seed)
        rows, clusters = rows[kept], clusters[kept]
        return SafetyRows(self._pool(dataset, rows), dataset.labels[rows], clusters, self._tokens(dataset, rows))

    def token_rows(self, dataset: Dataset, rows: IntArray, clusters: IntArray) -> TokenRows | None:
        """Return token activations of a sample of the training rows; None if no kind reads them."""
        if not self.recipe.reads_tokens:
            return None
        kept = sample_rows(clusters, _TOKEN_ROWS, seed=self.seed)
        return TokenRows(kept, self._tokens(dataset, rows[kept]))

    def padded_rows(
        self, dataset: Dataset, rows: IntArray, clusters: IntArray, expert: FloatArray, *, total: int
    ) -> PaddedRows | None:
        """Return a sample of the training rows inside benign context; None if there is one candidate only.

        Args:
            dataset: All rows.
            rows: Indices of the training rows.
            clusters: Cluster of each, shape [rows].
            expert: The expert's score of each, shape [rows].
            total: Rows whose activations are computed for the policy.
        """
        layers = self.base_model.spec.layers
        if len(self.recipe.layer_sets(layers)) * len(self.recipe.kind_sets()) == 1:
            return None
        if self.recipe.reads_tokens:
            kept = sample_rows(clusters, _TOKEN_ROWS, seed=self.seed)
            rows, clusters, expert = rows[kept], clusters[kept], expert[kept]
        kept = sample_rows(clusters, SELECTION_ROWS, seed=self.seed)
        rows, clusters, expert = rows[kept], clusters[kept], expert[kept]
        length = np.mean([len(dataset.conversations[row].plain_text()) for row in rows.tolist()])
        padded, inside = pad_rows(
            dataset,
            rows,
            assign_folds(dataset.labels[rows], clusters, seed=self.seed),
            clusters,
            total=int(total * length),
            max_tokens=self.base_model.spec.max_tokens,
            seed=self.seed,
        )
        if not inside.size:
            return None
        everything = np.arange(len(padded))
        tokens = self._tokens(padded, everything) if self.recipe.reads_tokens else None
        pooled = self._pool(padded, everything)
        return PaddedRows(TrainingRows(pooled, padded.labels, clusters[inside], expert[inside], tokens), inside)

    def _pool(self, dataset: Dataset, rows: IntArray) -> PooledRows:
        return pool_activations(
            dataset, rows, self.base_model, cache=self.cache, progress=self.progress, workers=self.workers
        )

    def _tokens(self, dataset: Dataset, rows: IntArray) -> list[Ragged]:
        return collect_tokens(
            dataset, rows, self.base_model, cache=self.cache, progress=self.progress, workers=self.workers
        )
