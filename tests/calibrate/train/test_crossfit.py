import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.train.crossfit import FOLDS, assign_folds, check_classes
from ctd_guardrail.errors import DataError


@given(st.integers(0, 10_000), st.integers(40, 200), st.integers(20, 100))
def test_no_cluster_is_in_two_folds(seed: int, rows: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, clusters, size=rows)
    labels = (rng.random(rows) < 0.5).astype(float)
    folds = assign_folds(labels, cluster, seed=seed)
    assert all(np.unique(folds[cluster == number]).size == 1 for number in np.unique(cluster))
    assert set(folds) <= set(range(FOLDS))


def test_every_fold_gets_its_share_of_rare_unsafe_rows() -> None:
    labels = np.zeros(1000)
    labels[:25] = 1
    folds = assign_folds(labels, np.arange(1000), seed=0)
    assert np.bincount(folds, weights=labels).tolist() == [5.0] * FOLDS
    assert np.bincount(folds).tolist() == [200] * FOLDS


def test_folds_depend_on_the_seed_and_on_nothing_else() -> None:
    labels = np.tile([0.0, 1.0], 50)
    assert np.array_equal(assign_folds(labels, np.arange(100), seed=1), assign_folds(labels, np.arange(100), seed=1))
    assert (assign_folds(labels, np.arange(100), seed=1) != assign_folds(labels, np.arange(100), seed=2)).any()


def test_one_cluster_with_all_unsafe_rows_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="folds with both labels"):
        assign_folds(np.repeat([1.0, 0.0], 20), np.concatenate([np.zeros(20), np.arange(1, 21)]).astype(int), seed=0)


@pytest.mark.parametrize("rare", [0, 1])
def test_few_rows_of_a_class_are_refused_by_name(rare: int) -> None:
    labels = np.full(100, 1.0 - rare)
    labels[:9] = rare
    with pytest.raises(DataError, match=f"hold 9 with label {rare}"):
        check_classes(labels, purpose="training")
