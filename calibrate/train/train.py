"""Both probes from labelled rows: the best candidate by cross-validation, trained on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.config.recipe import Recipe
from calibrate.features.pooled_rows import PooledRows
from calibrate.train.recipe import TrainedCandidate, train_candidate
from calibrate.train.rows import SafetyRows, TrainingRows, as_pooled, check_rows
from calibrate.train.selection import Candidate, PaddedRows, Scorer, Trainer, sample_rows, select
from ctd_guardrail._typing import Float32Array, FloatArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["TokenRows", "TrainedProbes", "layer_columns", "train_probes"]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token activations of some of the training rows.

    Attributes:
        rows: Indices of these rows, ascending.
        tokens: Activations of each row's windows.
    """

    rows: IntArray
    tokens: Sequence[Ragged]


@dataclass(frozen=True, slots=True)
class TrainedProbes:
    """Result of a training.

    Attributes:
        probes: Both probes, as the rail runs them.
        merge: Score of a delegated row, from the probe's and the expert's.
        layers: The layers that the probes read, of those that were given.
        record: Seed, rows, candidates and their cross-validated scores, as JSON.
    """

    probes: Probes
    merge: Merge
    layers: tuple[int, ...]
    record: dict[str, Any]

    def score(self, pooled: PooledRows | Float32Array) -> FloatArray:
        """Return (p, d) of each row, shape [rows, 2], from the mean activations of the layers that the probes read.

        Args:
            pooled: Activations of every window, or shape [n, width] for rows of one window.

        Raises:
            ConfigError: The probes read more than the mean.
        """
        pooled = as_pooled(pooled)
        return pooled.over_windows(self.probes.from_pooled(torch.from_numpy(pooled.values)).numpy().astype(np.float64))


def train_probes(
    activations: PooledRows | Float32Array,
    labels: FloatArray,
    expert_scores: FloatArray,
    clusters: IntArray | None = None,
    *,
    recipe: Recipe = Recipe(),  # noqa: B008  # frozen
    seed: int = 0,
    safety: SafetyRows | None = None,
    layers: tuple[int, ...] = (0,),
    tokens: TokenRows | None = None,
    padded: PaddedRows | None = None,
    measured: bool = True,
) -> TrainedProbes:
    """Train the safety probe, the delegation value and the merge.

    Candidates for layers and kinds are compared by cross-validation, and the best one is trained on all rows. If
    ``safety`` is None, the same rows train both probes. Then the safety probe is eta, P(y=1|x), and the delegation
    heads read its layers. Otherwise they read all layers.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> activations = rng.normal(size=(200, 8)).astype(np.float32)
        >>> labels = (activations[:, 0] > 0).astype(float)
        >>> expert_scores = np.where(activations[:, 1] > 0, labels, 0.5)
        >>> trained = train_probes(activations, labels, expert_scores)
        >>> p, d = trained.score(activations).T

    Args:
        activations: Mean-pooled activations of every window, or shape [n, width] for rows of one window.
        labels: 1 = unsafe, 0 = safe, shape [n].
        expert_scores: The expert's P(unsafe) in [0, 1], shape [n]. It must not have been trained on these rows.
        clusters: Rows with one number are near-duplicates or turns of one conversation, shape [n]. None: all rows are
            independent.
        recipe: Candidates, scaling and merge.
        seed: Seed of the folds. The same rows and seed give the same probes.
        safety: Rows of another source that the safety probe is trained on.
        layers: The layers whose activations lie side by side.
        tokens: Token activations of a sample of the rows, for all kinds but the mean.
        padded: Rows inside benign context, for the comparison of candidates.
        measured: Whether the record states how well the held-out d agrees with v. Kinds that read tokens train five
            more fits for it.

    Raises:
        DataError: Columns differ in length, a value is not finite or out of range, a class has too few rows, or a
            kind reads tokens and there are none.
    """
    clusters = np.arange(labels.size) if clusters is None else clusters
    rows = TrainingRows(as_pooled(activations), labels, clusters, expert_scores)
    check_rows(rows, purpose="the delegation value")
    source = None if safety is None else _source(safety)
    sample = _with_tokens(rows, tokens) if recipe.reads_tokens else rows
    candidates = [Candidate(chosen, kinds) for kinds in recipe.kind_sets() for chosen in recipe.layer_sets(layers)]
    width = rows.pooled.values.shape[1]

    def layers_of(candidate: Candidate) -> tuple[int, ...]:
        # On rows of another source than the safety probe's, eta is learnt too, and all layers help.
        return candidate.layers if source is None else layers

    def train(candidate: Candidate, part: TrainingRows, *, measured: bool) -> TrainedCandidate:
        read = layers_of(candidate)
        keep = layer_columns(read, layers, width)
        return train_candidate(
            part.columns(keep),
            candidate.kinds,
            recipe,
            seed=seed,
            safety=None if source is None else source.columns(keep),
            probe_columns=layer_columns(candidate.layers, read, keep.size),
            measured=measured,
        )

    def trainer_of(candidate: Candidate) -> Trainer:
        keep = layer_columns(layers_of(candidate), layers, width)

        def train_and_score(part: TrainingRows) -> Scorer:
            trained = train(candidate, part, measured=False)
            return lambda others: _score(trained, others.columns(keep))

        return train_and_score

    selection_rows = sample.take(sample_rows(sample.clusters, seed=seed))
    best, alternatives = select(candidates, selection_rows, trainer_of, padded=padded, seed=seed)
    trained = train(best, rows if best.kinds == ("mean",) else sample, measured=measured)
    record = {
        "seed": seed,
        "rows": int(labels.size),
        "refit": safety is None,
        "layers": list(best.layers),
        "delegation_layers": list(layers_of(best)),
        "kinds": list(best.kinds),
        "alternatives": alternatives,
        **trained.record,
    }
    return TrainedProbes(trained.probes, trained.merge, layers_of(best), record)


def _source(safety: SafetyRows) -> TrainingRows:
    rows = TrainingRows(
        as_pooled(safety.pooled), safety.labels, safety.clusters, np.zeros_like(safety.labels), safety.tokens
    )
    check_rows(rows, purpose="the safety probe")
    return rows


def _with_tokens(rows: TrainingRows, tokens: TokenRows | None) -> TrainingRows:
    if tokens is None:
        raise DataError("a kind of probe reads tokens, but only mean activations are given", hint="Set kinds: [mean]")
    part = rows.take(tokens.rows)
    return TrainingRows(part.pooled, part.labels, part.clusters, part.expert, list(tokens.tokens))


def layer_columns(chosen: tuple[int, ...], layers: tuple[int, ...], width: int) -> IntArray:
    """Return the columns of some layers.

    Args:
        chosen: These layers.
        layers: All layers, whose activations lie side by side.
        width: Number of columns of all layers.
    """
    size = width // len(layers)
    return np.concatenate([np.arange(size) + layers.index(layer) * size for layer in chosen])


def _score(trained: TrainedCandidate, rows: TrainingRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return p, d and the score of each row if it is delegated, as the rail computes them."""
    pooled = rows.pooled
    if rows.tokens is None:
        windows = trained.probes.from_pooled(torch.from_numpy(pooled.values))
    else:
        tokens = torch.cat([row.values for row in rows.tokens])
        windows = trained.probes(Ragged(tokens, tuple(pooled.lengths.tolist())))
    p, d = pooled.over_windows(windows.numpy().astype(np.float64)).T
    return p, d, trained.merge(p, rows.expert)
