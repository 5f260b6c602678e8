from __future__ import annotations

import numpy as np
import pytest

from calibrate.risk.splits import Split, one_per_cluster, random_split, require_disjoint
from ctd_guardrail.errors import DataError


def test_a_split_uses_every_row_once() -> None:
    split = random_split(100, share=0.3, seed=1)
    assert split.optimisation.size == 30
    assert sorted([*split.optimisation, *split.testing]) == list(range(100))


def test_a_row_on_both_sides_is_refused() -> None:
    with pytest.raises(DataError, match="optimisation rows and in the testing rows"):
        Split(np.array([0, 1]), np.array([1, 2]))


def test_a_split_needs_rows_in_both_parts() -> None:
    with pytest.raises(DataError):
        Split(np.array([0]), np.array([], dtype=np.intp))
    assert random_split(2).testing.size == 1


def test_parts_that_share_a_row_are_refused_and_both_are_named() -> None:
    with pytest.raises(DataError, match=r"'b' is in the train rows and in the calibration rows"):
        require_disjoint(train=["a", "b"], calibration=["b", "c"])
    require_disjoint(train=["a", "a"], calibration=["c"])


def test_one_row_of_each_cluster_is_kept() -> None:
    clusters = [f"c{i % 7}" for i in range(50)]
    kept = one_per_cluster(clusters, seed=3)
    assert sorted({clusters[i] for i in kept}) == sorted(clusters[i] for i in kept) == [f"c{i}" for i in range(7)]
    assert kept.tolist() != one_per_cluster(clusters, seed=4).tolist()
