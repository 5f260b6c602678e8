import numpy as np
import torch

from benchmarks.paper.sharing import shared_fits
from calibrate.features.pooled_rows import PooledRows
from calibrate.train import learner, linear, logistic, ridge, train_probes
from calibrate.train.descent import Schedule
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import label_target
from ctd_guardrail.probes.ragged import Ragged


def rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 120).astype(np.float64)
    pooled = (rng.normal(size=(120, 4)) + labels[:, None]).astype(np.float32)
    return pooled, labels, rng.random(120), np.arange(120)


def test_shared_fits_change_nothing_and_other_rows_get_fits_of_their_own() -> None:
    alone = [train_probes(*rows(seed), seed=0).probes.tensors() for seed in (1, 2)]
    with shared_fits():
        shared = [train_probes(*rows(seed), seed=0).probes.tensors() for seed in (1, 2, 1)]
    for one, other in zip([*alone, alone[0]], shared, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(alone[0]["0.weight"], alone[1]["0.weight"])


def test_an_equal_fit_is_computed_once() -> None:
    pooled, labels, _, clusters = rows(1)
    features = pooled.astype(np.float64)
    with shared_fits():
        first = linear.fit_logistic(features, labels, clusters, seed=0, weights=np.ones_like(labels))
        assert linear.fit_logistic(features.copy(), labels, clusters, seed=0, weights=np.ones_like(labels)) is first
        assert linear.fit_logistic(features, labels, clusters, seed=1, weights=np.ones_like(labels)) is not first
        assert linear.fit_ridge(features.copy(), labels, clusters) is linear.fit_ridge(features, labels, clusters)
        assert linear.fit_ridge(features, 1 - labels, clusters) is not linear.fit_ridge(features, labels, clusters)
    assert (linear.fit_logistic, linear.fit_ridge) == (logistic.fit_logistic, ridge.fit_ridge)


def test_equal_fits_to_tokens_are_shared_between_experts_and_no_others() -> None:
    pooled, labels, expert, clusters = rows(1)
    tokens = [Ragged(torch.from_numpy(row)[None], (1,)) for row in pooled]
    ones = np.ones(labels.size, dtype=np.int64)

    def fit(labels: np.ndarray, expert: np.ndarray, tokens: list[Ragged]) -> object:
        part = TrainingRows(PooledRows(pooled, ones, ones), labels, clusters, expert, tokens)
        targets, schedule = {"eta": label_target(labels)}, Schedule(epochs=1)
        return learner.fit_tokens(part, "ema", targets, chosen=clusters, seed=0, schedule=schedule)

    with shared_fits():
        first = fit(labels, expert, tokens)
        assert fit(labels.copy(), 1 - expert, tokens) is first
        assert fit(1 - labels, expert, tokens) is not first
        assert fit(labels, expert, tokens[::-1]) is not first
