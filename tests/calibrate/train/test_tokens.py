"""Each kind that reads tokens finds a structure that was made for it, and comes out as the rail runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.descent import Schedule
from calibrate.train.parts import Part, join_parts
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import Target, label_target
from calibrate.train.tokens import fit_tokens
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.spec import Component, Output, Reduction

WIDTH = 6
QUICK = Schedule(epochs=12, patience=6, rate=2e-2, batch=32)
KINDS: tuple[Reduction, ...] = ("ema", "rolling", "attention", "multimax")


def token_rows(count: int = 300, *, seed: int = 0, run: int = 1, windows: int = 1) -> TrainingRows:
    """Rows in which unsafe ones hold ``run`` neighbouring tokens that stick out, which a mean hardly shows.

    Activations are neither centred nor of one scale.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.5).astype(float)
    tokens = []
    for label in labels:
        lengths = tuple(rng.integers(30, 60, size=windows).tolist())
        values = rng.normal(size=(sum(lengths), WIDTH))
        start = int(rng.integers(0, sum(lengths) - run + 1))
        values[start : start + run, 0] += 6.0 / run**0.5 * label
        scaled = values * np.array([1.0, 10.0, 1, 1, 1, 1]) + 5.0
        tokens.append(Ragged(torch.from_numpy(scaled.astype(np.float32)), lengths))
    means = [part.mean(dim=0).numpy() for row in tokens for part in row.values.split(list(row.lengths))]
    pooled = PooledRows(np.stack(means), np.array([n for row in tokens for n in row.lengths]), np.full(count, windows))
    return TrainingRows(pooled, labels, np.arange(count), np.full(count, 0.5), tokens)


def chosen(rows: TrainingRows) -> np.ndarray:
    return np.cumsum(rows.pooled.windows) - rows.pooled.windows


def fit(rows: TrainingRows, kind: Reduction, targets: dict[str, Target] | None = None, **options: Any) -> Any:
    targets = targets or {"p": label_target(rows.labels)}
    options = {"schedule": QUICK, "seed": 0} | options
    return fit_tokens(rows, kind, targets, chosen=chosen(rows), **options)


@pytest.mark.parametrize(("kind", "run"), [("ema", 3), ("rolling", 25), ("attention", 1), ("multimax", 1)])
def test_each_kind_finds_what_the_mean_dilutes(kind: Reduction, run: int) -> None:
    found = fit(token_rows(run=run), kind)
    fresh = token_rows(seed=1, run=run)
    assert roc_auc_score(fresh.labels, found.predict(fresh)["p"]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_policys_probes_say_what_training_said(kind: Reduction) -> None:
    rows = token_rows(120, windows=2)
    labels = label_target(rows.labels)
    soft = Target("squared", np.linspace(0.2, 0.8, 120), np.ones(120))
    found = fit(rows, kind, {"p": labels, "eta": labels, "e1": soft, "e0": soft}, schedule=Schedule(epochs=3))
    everything = Ragged(torch.cat([row.values for row in rows.tokens or ()]), tuple(rows.pooled.lengths.tolist()))
    p, _ = rows.pooled.over_windows(join_parts(found.parts())(everything).numpy().astype(float)).T
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-found.predict(rows)["p"])), atol=2e-5)
    # The other heads, each in the place of p.
    for head in ("eta", "e1", "e0"):
        np.testing.assert_allclose(_logit(rows, found.parts()[0], head), found.predict(rows)[head], atol=2e-4)


def test_a_seed_decides() -> None:
    rows = token_rows(120)
    short = Schedule(epochs=2)
    one, same, other = (fit(rows, "attention", seed=seed, schedule=short).predict(rows)["p"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def _logit(rows: TrainingRows, part: Part, head: Output) -> np.ndarray:
    """Return a head of a part, run by the rail in the place of p: the largest value over each row's windows."""
    place = part.component.outputs.index(head)
    tensors = {name: tensor if name == "query" else tensor[[place]] for name, tensor in part.tensors.items()}
    alone = Part(part.component.model_copy(update={"outputs": ("p",)}), tensors, part.bias[[place]])
    silent = Part(Component(outputs=("eta", "e1", "e0")), {"weight": np.zeros((3, WIDTH))}, np.zeros(3))
    tokens = Ragged(torch.cat([row.values for row in rows.tokens or ()]), tuple(rows.pooled.lengths.tolist()))
    p = rows.pooled.over_windows(join_parts([alone, silent])(tokens).double().numpy())[:, 0]
    return np.log(p / (1 - p))


def test_rows_of_no_weight_teach_nothing() -> None:
    rows = token_rows(300)
    wrong = np.where(np.arange(300) < 150, rows.labels, 1.0 - rows.labels)
    half = (np.arange(300) < 150).astype(float)
    found = fit(rows, "multimax", {"p": Target("logistic", wrong, half)})
    fresh = token_rows(seed=1)
    assert roc_auc_score(fresh.labels, found.predict(fresh)["p"]) > 0.9


def test_held_out_values_do_not_know_their_own_labels() -> None:
    rng = np.random.default_rng(0)
    rows = token_rows(100)
    copies = np.repeat(np.arange(25), 4)
    noise = rows.take(copies)
    random = (rng.random(25) < 0.5).astype(float)[copies]
    noise = TrainingRows(noise.pooled, random, copies, noise.expert, noise.tokens)
    held_out = fit(noise, "attention", {"p": label_target(random)}, schedule=Schedule(epochs=15)).held_out()["p"]
    assert 0.2 < roc_auc_score(random, held_out) < 0.8
