"""Both probes from labelled rows: the best candidate by cross-validation, trained on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.config.training import TrainOptions
from calibrate.features.pooled_rows import PooledRows
from calibrate.train.fit import Fitted, fit_candidate
from calibrate.train.rows import SafetyRows, TrainingRows, as_pooled, check_rows
from calibrate.train.selection import Candidate, PaddedRows, Scorer, Trainer, sample_rows, select
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["TokenRows", "TrainedProbes", "layer_columns", "train_probes"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token activations of some of the training rows.

    Attributes:
        rows: Which, ascending.
        tokens: Activations of each row's windows.
    """

    rows: IntArray
    tokens: Sequence[Ragged]


@dataclass(frozen=True, slots=True)
class TrainedProbes:
    """What training produces.

    Attributes:
        probes: As the rail runs them.
        merge: How the cascade scores a row that went to the expert.
        layers: The layers that the probes read, of those that there are activations of.
        record: Seed, rows, candidates and their cross-validated scores, as JSON.
    """

    probes: Probes
    merge: Merge
    layers: tuple[int, ...]
    record: dict[str, Any]

    def score(self, pooled: PooledRows | NDArray[np.float32]) -> FloatArray:
        """Return (p, d) of each row, shape [rows, 2], from the mean activations of the layers that the probes read.

        Args:
            pooled: Of every window, or shape [n, width] for rows of one window.

        Raises:
            ConfigError: The probes read more than the mean.
        """
        pooled = as_pooled(pooled)
        windows = self.probes.from_pooled(torch.from_numpy(pooled.values), pooled.lengths)
        return pooled.over_windows(windows.numpy().astype(np.float64))


def train_probes(
    pooled: PooledRows | NDArray[np.float32],
    labels: FloatArray,
    expert: FloatArray,
    clusters: IntArray,
    *,
    seed: int,
    safety: SafetyRows | None = None,
    options: TrainOptions = TrainOptions(),  # noqa: B008  # frozen
    layers: tuple[int, ...] = (0,),
    tokens: TokenRows | None = None,
    padded: PaddedRows | None = None,
    measured: bool = True,
) -> TrainedProbes:
    """Train the safety probe, the delegation value and the merge.

    Without ``safety`` the same rows serve both probes: then eta, P(y=1|x) on these rows, is the safety probe.

    Args:
        pooled: Mean-pooled activations of every window, or shape [n, width] for rows of one window.
        labels: 1 = unsafe, 0 = safe, shape [n].
        expert: The expert's P(unsafe) in [0, 1] of rows that it was not trained on, shape [n].
        clusters: Rows of one number are near-duplicates or turns of one conversation, shape [n].
        seed: Of the folds; the same rows and seed give the same probes.
        safety: Rows for the safety probe, where it is to come from another source.
        options: Kinds of probes, and what is chosen.
        layers: The layers whose activations lie side by side.
        tokens: Token activations of a sample of the rows, for all kinds but the mean.
        padded: Rows inside benign context, for the choice between candidates.
        measured: Whether the record is to say how well the held-out d agrees with v, which kinds that read tokens take
            five more fits for.

    Raises:
        DataError: Columns differ in length, a value is not finite or out of range, a class has too few rows, or a
            kind reads tokens and there are none.
    """
    rows = TrainingRows(as_pooled(pooled), labels, clusters, expert)
    check_rows(rows, purpose="the delegation value")
    source = None if safety is None else _source(safety)
    sample = _with_tokens(rows, tokens) if options.reads_tokens else rows
    candidates = [Candidate(chosen, kinds) for kinds in options.kind_sets() for chosen in options.layer_sets(layers)]
    width = rows.pooled.values.shape[1]

    wide = options.delegation_layers == "all" or (options.delegation_layers == "auto" and safety is not None)

    def read_layers(candidate: Candidate) -> tuple[int, ...]:
        return layers if wide else candidate.layers

    def fit(candidate: Candidate, part: TrainingRows, *, measured: bool) -> Fitted:
        read = read_layers(candidate)
        keep = layer_columns(read, layers, width)
        return fit_candidate(
            part.columns(keep),
            candidate.kinds,
            options,
            seed=seed,
            safety=None if source is None else source.columns(keep),
            probe_columns=layer_columns(candidate.layers, read, keep.size),
            measured=measured,
        )

    def trainer_of(candidate: Candidate) -> Trainer:
        keep = layer_columns(read_layers(candidate), layers, width)

        def train(part: TrainingRows) -> Scorer:
            fitted = fit(candidate, part, measured=False)
            return lambda others: _score(fitted, others.columns(keep))

        return train

    chosen_from = sample.take(sample_rows(sample.clusters, seed=seed))
    best, alternatives = select(candidates, chosen_from, trainer_of, padded=padded, seed=seed)
    fitted = fit(best, rows if best.kinds == ("mean",) else sample, measured=measured)
    record = {
        "seed": seed,
        "rows": int(labels.size),
        "refit": safety is None,
        "layers": list(best.layers),
        "delegation_layers": list(read_layers(best)),
        "kinds": list(best.kinds),
        "alternatives": alternatives,
        **fitted.record,
    }
    return TrainedProbes(fitted.probes, fitted.merge, read_layers(best), record)


def _source(safety: SafetyRows) -> TrainingRows:
    rows = TrainingRows(
        as_pooled(safety.pooled), safety.labels, safety.clusters, np.zeros_like(safety.labels), safety.tokens
    )
    check_rows(rows, purpose="the safety probe")
    return rows


def _with_tokens(rows: TrainingRows, tokens: TokenRows | None) -> TrainingRows:
    if tokens is None:
        raise DataError("a kind of probe reads tokens, and there are only mean activations", hint="Set kinds: [mean]")
    part = rows.take(tokens.rows)
    return TrainingRows(part.pooled, part.labels, part.clusters, part.expert, list(tokens.tokens))


def layer_columns(chosen: tuple[int, ...], layers: tuple[int, ...], width: int) -> IntArray:
    """Return the columns of some layers.

    Args:
        chosen: Which.
        layers: Those that lie side by side.
        width: Columns of all of them.
    """
    size = width // len(layers)
    return np.concatenate([np.arange(size) + layers.index(layer) * size for layer in chosen])


def _score(fitted: Fitted, rows: TrainingRows) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return p, d and the score with the expert, as the rail computes them."""
    pooled = rows.pooled
    if rows.tokens is None:
        windows = fitted.probes.from_pooled(torch.from_numpy(pooled.values), pooled.lengths)
    else:
        tokens = torch.cat([row.values for row in rows.tokens])
        windows = fitted.probes(Ragged(tokens, tuple(pooled.lengths.tolist())))
    p, d = pooled.over_windows(windows.numpy().astype(np.float64)).T
    return p, d, fitted.merge(p, rows.expert)
