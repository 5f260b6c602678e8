"""What training reads beside the mean activations of its rows: tokens of a sample, and rows inside benign context."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.compute.workers import Workers
from calibrate.config.training import TrainOptions
from calibrate.features import PooledRows, collect_tokens, pool_activations
from calibrate.rows.data import Dataset
from calibrate.rows.padding import pad_rows
from calibrate.train import PaddedRows, SafetyRows, TokenRows
from calibrate.train.crossfit import assign_folds
from calibrate.train.rows import TrainingRows
from calibrate.train.selection import SELECTION_ROWS, sample_rows
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["Preparation"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Preparation:
    """Computes activations for training.

    Attributes:
        engine: The base model, at all layers that may be chosen.
        options: Which candidates there are.
        seed: Of all samples.
        cache: Folder of finished activations.
        progress: Where bars are drawn.
        workers: Who computes them.
    """

    engine: BatchedBaseModel
    options: TrainOptions
    seed: int
    cache: Path
    progress: Progress = field(repr=False)
    workers: Workers

    def safety_rows(self, dataset: Dataset, rows: IntArray, clusters: IntArray) -> SafetyRows:
        """Return the rows of another source, at most ``token_rows`` of them where a kind reads tokens.

        Args:
            dataset: The source.
            rows: Indices of those to use.
            clusters: Cluster of each, shape [rows].
        """
        if not self.options.reads_tokens:
            return SafetyRows(self._pool(dataset, rows), dataset.labels[rows], clusters)
        kept = sample_rows(clusters, self.options.token_rows, seed=self.seed)
        rows, clusters = rows[kept], clusters[kept]
        return SafetyRows(self._pool(dataset, rows), dataset.labels[rows], clusters, self._tokens(dataset, rows))

    def token_rows(self, dataset: Dataset, rows: IntArray, clusters: IntArray) -> TokenRows | None:
        """Return token activations of a sample of the training rows; None where nothing reads them."""
        if not self.options.reads_tokens:
            return None
        kept = sample_rows(clusters, self.options.token_rows, seed=self.seed)
        return TokenRows(kept, self._tokens(dataset, rows[kept]))

    def padded_rows(
        self, dataset: Dataset, rows: IntArray, clusters: IntArray, expert: FloatArray, *, total: int
    ) -> PaddedRows | None:
        """Return a sample of the training rows inside benign context; None where there is nothing to choose.

        Args:
            dataset: All rows.
            rows: Indices of the training rows.
            clusters: Cluster of each, shape [rows].
            expert: The expert's score of each, shape [rows].
            total: Rows whose activations are computed for the policy.
        """
        layers = self.engine.spec.layers
        if len(self.options.layer_sets(layers)) * len(self.options.kind_sets()) == 1:
            return None
        if self.options.reads_tokens:
            kept = sample_rows(clusters, self.options.token_rows, seed=self.seed)
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
            max_tokens=self.engine.spec.max_tokens,
            seed=self.seed,
        )
        if not inside.size:
            return None
        everything = np.arange(len(padded))
        tokens = self._tokens(padded, everything) if self.options.reads_tokens else None
        pooled = self._pool(padded, everything)
        return PaddedRows(TrainingRows(pooled, padded.labels, clusters[inside], expert[inside], tokens), inside)

    def _pool(self, dataset: Dataset, rows: IntArray) -> PooledRows:
        return pool_activations(
            dataset, rows, self.engine, cache=self.cache, progress=self.progress, workers=self.workers
        )

    def _tokens(self, dataset: Dataset, rows: IntArray) -> list[Ragged]:
        return collect_tokens(
            dataset, rows, self.engine, cache=self.cache, progress=self.progress, workers=self.workers
        )
