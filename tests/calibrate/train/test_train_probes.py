import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from calibrate.train import SafetyRows, train_probes
from calibrate.train.logistic import fit_logistic
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.spec import OUTPUTS

WIDTH = 12


@dataclass(frozen=True)
class World:
    """Rows whose eta, e1 and e0 are known functions of the activations.

    The label turns on activation 0 and the expert's skill on activation 1: it is right where that is large.
    """

    pooled: np.ndarray
    labels: np.ndarray
    expert: np.ndarray
    clusters: np.ndarray
    eta: np.ndarray
    e1: np.ndarray
    e0: np.ndarray

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.pooled, self.labels, self.expert, self.clusters


def world(rows: int, seed: int, width: int = WIDTH) -> World:
    rng = np.random.default_rng(seed)
    pooled = rng.normal(size=(rows, width)).astype(np.float32)
    eta = expit(2.0 * pooled[:, 0])
    labels = (rng.random(rows) < eta).astype(float)
    skill = np.clip(0.5 + 0.15 * pooled[:, 1], 0, 1)
    expert = np.clip(np.where(labels == 1, skill, 1 - skill) + 0.05 * rng.normal(size=rows), 0, 1)
    return World(pooled, labels, expert, np.arange(rows), eta, skill, 1 - skill)


def scores(trained: Any, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, d = trained.probes.from_pooled(torch.from_numpy(pooled)).numpy().astype(float).T
    return p, d


def test_the_plug_in_recovers_the_best_possible_delegation_value() -> None:
    trained = train_probes(*world(4000, 0).columns, seed=0)
    test = world(4000, 1)
    p, d = scores(trained, test.pooled)
    best = test.eta * (test.e1 - p) + (1 - test.eta) * (p - test.e0)
    assert np.abs(p - test.eta).mean() < 0.03
    assert np.abs(d - best).mean() < 0.03
    assert spearmanr(d, best).statistic > 0.97


def test_a_probe_from_another_source_is_seen_through() -> None:
    # The source has the label on another activation, so p is noise here, and eta has to come from the other rows.
    source = world(2000, 2)
    swapped = SafetyRows(source.pooled[:, ::-1].copy(), source.labels, source.clusters)
    trained = train_probes(*world(4000, 0).columns, seed=0, safety=swapped)
    test = world(4000, 1)
    p, d = scores(trained, test.pooled)
    best = test.eta * (test.e1 - p) + (1 - test.eta) * (p - test.e0)
    assert abs(spearmanr(p, test.eta).statistic) < 0.2
    assert np.abs(d - best).mean() < 0.04
    assert "rows_of_safety_probe" not in trained.record["delegation"]["eta"]


def test_eta_learns_from_rows_of_the_safety_probe_that_are_of_the_same_traffic() -> None:
    rows, others = world(300, 0, width=100), world(3000, 2, width=100)
    same = SafetyRows(others.pooled, others.labels, others.clusters)
    trained = train_probes(*rows.columns, seed=0, safety=same)
    assert trained.record["delegation"]["eta"]["rows_of_safety_probe"] == 3000
    test = world(4000, 1, width=100)
    own = fit_logistic(rows.pooled.astype(float), rows.labels, rows.clusters, seed=0)
    error_alone = np.abs(expit(own.logit(test.pooled)) - test.eta).mean()
    p, d = scores(trained, test.pooled)
    best = test.eta * (test.e1 - p) + (1 - test.eta) * (p - test.e0)
    assert np.abs(d - best).mean() < error_alone


def swapped_source(seed: int) -> SafetyRows:
    """Return rows whose label is on another activation."""
    source = world(400, seed)
    return SafetyRows(source.pooled[:, ::-1].copy(), source.labels, source.clusters)


def test_eta_is_a_ridge_where_it_rises_in_a_line_and_logistic_where_it_is_nearly_a_step() -> None:
    rows, uniform = world(3000, 0), np.random.default_rng(0).random(3000)
    x = rows.pooled[:, 0]
    records = []
    for eta in (np.clip(0.5 + 0.2 * x, 0, 1), expit(12.0 * x)):
        columns = rows.pooled, (uniform < eta).astype(float), rows.expert, rows.clusters
        trained = train_probes(*columns, seed=0, safety=swapped_source(2))
        records.append(trained.record["delegation"]["eta"])
    assert ["penalty" in record for record in records] == [True, False]
    assert ["C" in record for record in records] == [False, True]


def test_eta_of_labels_that_nothing_tells_apart_is_the_share_of_unsafe_rows() -> None:
    rows = world(300, 0)
    labels = (np.arange(300) % 5 == 0).astype(float)
    columns = np.ones_like(rows.pooled), labels, rows.expert, rows.clusters
    trained = train_probes(*columns, seed=0, safety=swapped_source(2))
    assert trained.record["delegation"]["eta"]["scale"] == {"slope": 0.0, "offset": pytest.approx(logit(0.2))}


def test_eta_is_as_sure_as_its_held_out_ranking_deserves() -> None:
    # Few rows and many dimensions: the penalty that ranks best leaves logits too small.
    rows, others = world(300, 0, width=100), world(100, 2, width=100)
    source = SafetyRows(others.pooled[:, ::-1].copy(), others.labels, others.clusters)
    trained = train_probes(*rows.columns, seed=0, safety=source)
    scale = trained.record["delegation"]["eta"]["scale"]
    assert scale["slope"] > 1.0
    test = world(4000, 1, width=100)
    heads = trained.probes.tensors()
    place = OUTPUTS.index("eta")
    row = trained.probes.spec.components[0].outputs.index("eta")
    logit = test.pooled @ heads["0.weight"][row] + heads["bias"][place]
    unscaled = (logit - scale["offset"]) / scale["slope"]
    errors = [np.square(expit(each) - test.eta).mean() for each in (logit, unscaled)]
    assert errors[0] < errors[1]


def test_folded_heads_score_as_sklearn_does_on_standardised_features() -> None:
    rows = world(600, 3)
    # Massive activations: one dimension a thousand times the others, far from zero.
    rows.pooled[:, 4] = 1000.0 * rows.pooled[:, 4] + 5000.0
    trained = train_probes(*rows.columns, seed=0)
    scaler = StandardScaler().fit(rows.pooled.astype(float))
    features = scaler.transform(rows.pooled.astype(float))
    record = trained.record
    safety = LogisticRegression(C=record["safety"]["C"], max_iter=2000).fit(features, rows.labels)
    unsafe = rows.labels == 1
    heads = [
        Ridge(alpha=record["delegation"][name]["penalty"] * part.sum()).fit(features[part], rows.expert[part])
        for name, part in (("e1", unsafe), ("e0", ~unsafe))
    ]
    p = safety.predict_proba(features)[:, 1]
    e1, e0 = (np.clip(head.predict(features), 0, 1) for head in heads)
    mine = np.stack(scores(trained, rows.pooled))
    assert np.allclose(mine, [p, p * (e1 - p) + (1 - p) * (p - e0)], atol=1e-5)


def test_the_same_rows_and_seed_give_the_same_probes() -> None:
    rows = world(400, 4)
    one, other = (train_probes(*rows.columns, seed=5) for _ in range(2))
    assert one.record == other.record
    for name, tensor in one.probes.tensors().items():
        assert np.array_equal(tensor, other.probes.tensors()[name])


def test_in_sample_scores_flatter_the_probe_and_hide_what_the_expert_is_worth() -> None:
    rows, fresh = world(300, 6, width=150), world(4000, 7, width=150)
    head = fit_logistic(rows.pooled.astype(float), rows.labels, rows.clusters, seed=0)

    def mean_value(part: World, logits: np.ndarray) -> float:
        return float(np.mean((2 * part.labels - 1) * (part.expert - expit(logits))))

    truth = mean_value(fresh, head.logit(fresh.pooled.astype(float)))
    in_sample = mean_value(rows, head.logit(rows.pooled.astype(float)))
    cross_fitted = mean_value(rows, head.out_of_fold)
    assert abs(cross_fitted - truth) < 0.03
    assert truth - in_sample > 0.05


def test_the_record_predicts_how_d_agrees_with_v_on_new_rows() -> None:
    trained = train_probes(*world(1500, 8).columns, seed=0)
    test = world(4000, 9)
    p, d = scores(trained, test.pooled)
    value = (2 * test.labels - 1) * (test.expert - p)
    agreement = trained.record["delegation"]["cross_fitted"]
    assert agreement["spearman"] == pytest.approx(spearmanr(value, d).statistic, abs=0.05)
    assert agreement["mean_value"] == pytest.approx(value.mean(), abs=0.03)


def test_the_record_is_json_and_says_what_was_tried() -> None:
    record = json.loads(json.dumps(train_probes(*world(300, 0).columns, seed=0).record))
    assert record["rows"] == 300
    assert record["refit"] is True
    tried = record["safety"]["alternatives"]
    assert record["safety"]["C"] == min(tried, key=lambda alternative: alternative["log_loss"])["C"]
    for name in ("e1", "e0"):
        head = record["delegation"][name]
        best = min(head["alternatives"], key=lambda alternative: alternative["squared_error"])
        assert head["penalty"] == best["penalty"]


def test_out_of_fold_logits_do_not_know_their_own_labels() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 200)), (rng.random(400) < 0.5).astype(float)
    # Ten copies of each row: only folds by cluster keep a copy from giving its label away.
    copies = np.repeat(np.arange(400), 10)
    head = fit_logistic(features[copies], labels[copies], copies, seed=0)
    right = (head.out_of_fold > 0) == (labels[copies] == 1)
    assert 0.4 < right.mean() < 0.6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"labels": np.zeros(300)}, "hold 0 with label 1"),
        ({"labels": np.full(300, 0.5)}, "neither 0 nor 1"),
        ({"expert_scores": np.full(300, 1.5)}, "not 300 numbers in"),
        ({"expert_scores": np.full(300, np.nan)}, "not 300 numbers in"),
        ({"expert_scores": np.zeros(299)}, "not 300 numbers in"),
        ({"activations": np.full((300, WIDTH), np.inf, np.float32)}, "not all finite"),
        ({"activations": np.zeros((299, WIDTH), np.float32)}, "300 labels"),
        ({"clusters": np.zeros(300, np.int64)}, "1 clusters of dependent rows"),
    ],
)
def test_rows_that_cannot_train_are_refused(change: dict[str, np.ndarray], problem: str) -> None:
    rows = world(300, 0)
    names = ("activations", "labels", "expert_scores", "clusters")
    columns = dict(zip(names, rows.columns, strict=True)) | change
    with pytest.raises(DataError, match=problem):
        train_probes(**columns, seed=0)


def test_safety_rows_of_one_class_are_refused_by_name() -> None:
    rows = world(300, 0)
    with pytest.raises(DataError, match="the safety probe hold 0 with label 0"):
        train_probes(*rows.columns, seed=0, safety=SafetyRows(rows.pooled, np.ones(300), rows.clusters))


def test_wide_activations_and_few_rows_train() -> None:
    rows = world(80, 0, width=300)
    p, d = scores(train_probes(*rows.columns, seed=0), rows.pooled)
    assert np.isfinite(logit(p)).all()
    assert np.isfinite(d).all()
