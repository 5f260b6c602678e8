"""Every way to train the probes recovers what was planted, and the record says what was chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from calibrate.features.pooled_rows import PooledRows
from calibrate.train import PaddedRows, Recipe, SafetyRows, TokenRows, TrainedProbes, learner, tokens, train_probes
from calibrate.train.descent import Schedule
from calibrate.train.recipe import train_candidate
from calibrate.train.rows import TrainingRows
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.ragged import Ragged

WIDTH = 10


@dataclass(frozen=True)
class World:
    """The label turns on activation 0; the expert is right where activation 1 is large, and harmful where it is low."""

    pooled: np.ndarray
    labels: np.ndarray
    expert: np.ndarray

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.pooled, self.labels, self.expert, np.arange(self.labels.size)

    def value(self, p: np.ndarray) -> np.ndarray:
        """The true value of the expert, known from the simulation: E[v | x]."""
        eta, skill = expit(2.0 * self.pooled[:, 0].astype(float)), np.clip(0.5 + 0.2 * self.pooled[:, 1], 0, 1)
        return eta * (skill - p) + (1 - eta) * (p - (1 - skill))


def world(rows: int, seed: int, *, level: float = 0.5) -> World:
    rng = np.random.default_rng(seed)
    pooled = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    labels = (rng.random(rows) < expit(2.0 * pooled[:, 0])).astype(float)
    skill = np.clip(level + 0.2 * pooled[:, 1], 0, 1)
    noise = 0.05 * rng.normal(size=rows)
    return World(pooled, labels, np.clip(np.where(labels == 1, skill, 1 - skill) + noise, 0, 1))


def score(trained: TrainedProbes, rows: World) -> tuple[np.ndarray, np.ndarray]:
    p, d = trained.score(PooledRows(rows.pooled, np.full(rows.labels.size, 9), np.ones(rows.labels.size, int))).T
    return p, d


def test_delegation_ranks_by_the_value_of_the_expert() -> None:
    trained = train_probes(*world(3000, 0).columns)
    test = world(3000, 1)
    p, d = score(trained, test)
    assert spearmanr(d, test.value(p)).statistic > 0.97


def test_scales_of_shifted_judges_are_learnt_where_they_help() -> None:
    # The safety probe comes from rows of another base rate, and the expert shouts.
    source = world(2000, 2)
    shifted = SafetyRows(source.pooled + np.eye(WIDTH, dtype=np.float32)[0], source.labels, np.arange(2000))
    rows, test = world(3000, 0), world(3000, 1)

    def shout(expert: np.ndarray) -> np.ndarray:
        return np.clip(1.6 * expert, 0, 1)

    columns = (rows.pooled, rows.labels, shout(rows.expert), np.arange(3000))
    brier, trained = {}, {}
    for calibrate in ("none", "platt", "auto"):
        recipe = Recipe.model_validate({"calibrate": calibrate})
        trained[calibrate] = train_probes(*columns, seed=0, safety=shifted, recipe=recipe)
        p, d = score(trained[calibrate], test)
        merged = np.where(d > np.quantile(d, 0.7), trained[calibrate].merge(p, shout(test.expert)), p)
        brier[calibrate] = np.square(test.labels - merged).mean()
        assert spearmanr(p, test.pooled[:, 0]).statistic > 0.95
    assert brier["platt"] < brier["none"] - 0.01
    assert brier["auto"] == brier["platt"]
    assert trained["none"].merge.expert_scale is None
    assert trained["platt"].merge.expert_scale is not None
    choice = trained["auto"].record["calibrate"]
    assert choice["platt"]
    assert choice["brier"]["platt"] < choice["brier"]["none"]


def test_without_another_source_the_scale_is_that_of_p_and_of_eta() -> None:
    rows = world(2000, 0)
    plain, scaled = (
        train_probes(*rows.columns, seed=0, recipe=Recipe.model_validate({"calibrate": calibrate}))
        for calibrate in ("none", "platt")
    )
    for trained in (plain, scaled):
        weight, bias = trained.probes.tensors()["0.weight"], trained.probes.tensors()["bias"]
        heads = trained.probes.spec.components[0].outputs
        p, eta = heads.index("p"), heads.index("eta")
        np.testing.assert_array_equal(weight[p], weight[eta])
        assert bias[0] == bias[1]
    slope = scaled.probes.tensors()["0.weight"][0] / plain.probes.tensors()["0.weight"][0]
    np.testing.assert_allclose(slope, slope[0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["average", "stacking"])
def test_the_merge_is_learnt_and_its_alternatives_are_recorded(kind: Any) -> None:
    rows, test = world(3000, 0, level=0.7), world(6000, 1, level=0.7)
    trained = train_probes(*rows.columns, seed=0, recipe=Recipe(merge=kind))
    assert trained.merge.kind == kind
    found = {each["kind"]: each["brier"] for each in trained.record["merge"]["alternatives"]}
    assert found[kind] <= found["replace"] + 1e-9
    # v is of the merged score, so the delegation value is too.
    p, d = score(trained, test)
    value = (2 * test.labels - 1) * (trained.merge(p, test.expert) - p)
    agreement = trained.record["delegation"]["cross_fitted"]
    assert agreement["mean_value"] == pytest.approx(value.mean(), abs=0.02)
    assert agreement["spearman"] == pytest.approx(spearmanr(value, d).statistic, abs=0.07)


def test_the_layer_that_knows_is_chosen_and_the_probes_read_no_other_where_they_need_not() -> None:
    rows = world(700, 0)
    noise = np.random.default_rng(5).normal(size=(700, WIDTH)).astype(np.float32)
    pooled = np.hstack([noise, rows.pooled])
    alone = Recipe(layers=((3,), (8,)))
    trained = train_probes(pooled, *rows.columns[1:], seed=0, layers=(3, 8), recipe=alone)
    assert trained.layers == (8,)
    assert trained.probes.width == WIDTH
    tried = {tuple(each["layers"]): each["brier"] for each in trained.record["alternatives"]}
    assert set(tried) == {(3,), (8,)}
    assert tried[8,] < tried[3,] - 0.05
    both = train_probes(pooled, *rows.columns[1:], seed=0, layers=(3, 8), recipe=Recipe(layers=((3, 8),)))
    assert both.layers == (3, 8)
    assert both.probes.width == 2 * WIDTH
    assert both.record["alternatives"] == []
    json.dumps(trained.record)


@pytest.mark.parametrize("refit", [True, False])
def test_delegation_heads_read_all_layers_if_the_safety_probe_has_another_source(*, refit: bool) -> None:
    # The label turns on the first layer, and where the expert is right on the second.
    rows, test = world(800, 0), world(2000, 1)
    knows = np.arange(WIDTH) == 1

    def layers_of(pooled: np.ndarray) -> np.ndarray:
        return np.hstack([np.where(knows, 0.0, pooled), np.where(knows, pooled, 0.0)]).astype(np.float32)

    source = world(400, 2)
    safety = None if refit else SafetyRows(layers_of(source.pooled), source.labels, np.arange(400))
    columns = (layers_of(rows.pooled), *rows.columns[1:])
    trained = train_probes(*columns, layers=(3, 8), recipe=Recipe(layers=((3,),)), safety=safety)
    assert trained.record["layers"] == [3]
    assert list(trained.layers) == trained.record["delegation_layers"] == ([3] if refit else [3, 8])
    width = trained.probes.width
    p, d = trained.score(layers_of(test.pooled)[:, :width]).T
    # p does not depend on a layer that the safety probe does not read.
    moved = layers_of(test.pooled)[:, :width] + np.where(np.arange(width) >= WIDTH, 1.0, 0.0).astype(np.float32)
    assert trained.score(moved)[:, 0] == pytest.approx(p, abs=1e-6)
    agreement = spearmanr(d, test.value(p)).statistic
    assert agreement < 0.9 if refit else agreement > 0.95


def test_padding_that_hides_a_layers_signal_speaks_against_it() -> None:
    # Both layers know the label, the first a little better; in padded rows it knows nothing.
    rows = world(500, 0)
    rng = np.random.default_rng(5)
    blurred = rows.pooled + 0.5 * rng.normal(size=rows.pooled.shape).astype(np.float32)
    pooled = np.hstack([rows.pooled, blurred])
    inside = np.arange(300)
    hidden = np.hstack([np.zeros_like(blurred[inside]), blurred[inside]])
    ones = np.ones(300, dtype=np.int64)
    padded = PaddedRows(
        TrainingRows(PooledRows(hidden, ones, ones), rows.labels[inside], inside, rows.expert[inside]), inside
    )
    recipe = Recipe(layers=((1,), (2,)))

    def choose(padded: PaddedRows | None) -> tuple[int, ...]:
        return train_probes(*(pooled, *rows.columns[1:]), seed=0, layers=(1, 2), recipe=recipe, padded=padded).layers

    assert choose(None) == (1,)
    assert choose(padded) == (2,)


def spiked(count: int, seed: int) -> tuple[PooledRows, np.ndarray, np.ndarray, list[Ragged]]:
    """Rows whose label shows in one token, which the mean over fifty dilutes; the expert knows half of the rows."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.5).astype(float)
    values = rng.normal(size=(count, 50, 4)).astype(np.float32)
    values[np.arange(count), rng.integers(0, 50, count), 0] += 7.0 * labels
    tokens = [Ragged(torch.from_numpy(row), (50,)) for row in values]
    expert = np.where(rng.random(count) < 0.5, labels, 0.5)
    return PooledRows(values.mean(axis=1), np.full(count, 50), np.ones(count, int)), labels, expert, tokens


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule for a few hundred rows."""

    def fast(*arguments: Any, **options: Any) -> Any:
        return tokens.fit_tokens(*arguments, **options, schedule=Schedule(epochs=5, patience=5, rate=3e-2, batch=32))

    monkeypatch.setattr(learner, "fit_tokens", fast)


@pytest.mark.usefixtures("quick")
def test_a_kind_that_reads_tokens_wins_where_the_mean_dilutes() -> None:
    pooled, labels, expert, ragged = spiked(200, 0)
    sample = TokenRows(np.arange(200), ragged)
    recipe = Recipe(kinds=("mean", "multimax"))
    trained = train_probes(pooled, labels, expert, np.arange(200), seed=0, recipe=recipe, tokens=sample)
    assert trained.record["kinds"] != ["mean"]
    assert {tuple(each["kinds"]) for each in trained.record["alternatives"]} == {
        ("mean",),
        ("multimax",),
        ("mean", "multimax"),
    }
    _, fresh_labels, _, fresh = spiked(300, 1)
    run = trained.probes(Ragged(torch.cat([row.values for row in fresh]), (50,) * 300)).numpy()
    assert roc_auc_score(fresh_labels, run[:, 0]) > 0.8
    assert np.abs(run[:, 1]).max() <= 1.0
    json.dumps(trained.record)


@pytest.mark.usefixtures("quick")
def test_means_and_tokens_average_with_every_option() -> None:
    pooled, labels, expert, ragged = spiked(120, 0)
    recipe = Recipe(kinds=("mean", "attention"), calibrate="platt", merge="average")
    rows = TrainingRows(pooled, labels, np.arange(120), expert, ragged)
    source = TrainingRows(pooled, labels, np.arange(120), np.zeros(120), ragged)
    for safety in (None, source):
        trained = train_candidate(rows, ("mean", "attention"), recipe, seed=0, safety=safety)
        kinds = [component.reduction for component in trained.probes.spec.components]
        assert kinds.count("mean") == 1
        # p with eta, and the expert heads. If p has another source, eta has a component of its own.
        assert kinds.count("attention") == (2 if safety is None else 3)
        run = trained.probes(Ragged(torch.cat([row.values for row in ragged]), (50,) * 120)).numpy()
        assert np.isfinite(run).all()
        agreement = trained.record["delegation"]["cross_fitted"]
        assert -1.0 <= agreement["spearman"] <= 1.0


def test_a_kind_that_reads_tokens_needs_them() -> None:
    with pytest.raises(DataError, match="only mean activations"):
        train_probes(*world(300, 0).columns, seed=0, recipe=Recipe(kinds=("ema",)))


@pytest.mark.usefixtures("quick")
def test_a_candidate_that_is_only_scored_trains_no_fits_for_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled, labels, expert, ragged = spiked(60, 0)
    rows = TrainingRows(pooled, labels, np.arange(60), expert, ragged)

    def refuse(fit: tokens.TokenFit) -> dict[str, np.ndarray]:
        raise AssertionError(f"{fit.kind} trains five more fits")

    monkeypatch.setattr(tokens.TokenFit, "held_out", refuse)
    trained = train_candidate(rows, ("ema",), Recipe(), seed=0, measured=False)
    assert "cross_fitted" not in trained.record["delegation"]
    with pytest.raises(AssertionError, match="five more"):
        train_candidate(rows, ("ema",), Recipe(merge="average"), seed=0, measured=False)
