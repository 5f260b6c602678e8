import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.draws import Counts, draw_rows
from ctd_guardrail.errors import DataError


def two_files(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of up to six rows, in two files of different size."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=200)
    clusters = np.repeat(np.arange(200), sizes)
    return clusters, (clusters >= 80).astype(np.int64)


@given(st.integers(0, 1000), st.sampled_from([0, 60]))
def test_parts_share_no_cluster_and_what_certifies_and_tests_is_independent(seed: int, safety: int) -> None:
    clusters, files = two_files(seed)
    draw = draw_rows(clusters, files, Counts(100, 40, 60, safety), seed=seed)
    parts = [set(clusters[part]) for part in (draw.train, draw.safety, draw.calibration, draw.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert (len(parts[2]), len(parts[3])) == (draw.calibration.size, draw.test.size)


@given(st.integers(0, 1000))
def test_every_file_gives_its_equal_share(seed: int) -> None:
    clusters, files = two_files(seed)
    draw = draw_rows(clusters, files, Counts(100, 40, 60, 50), seed=seed)
    assert np.bincount(files[draw.calibration]).tolist() == [20, 20]
    assert np.bincount(files[draw.test]).tolist() == [30, 30]
    # A cluster is not cut, so training may take a few rows more.
    assert all(50 <= count < 56 for count in np.bincount(files[draw.train]))
    assert all(25 <= count < 31 for count in np.bincount(files[draw.safety]))


def test_rows_of_the_safety_probe_leave_the_training_rows_as_they_are() -> None:
    clusters, files = two_files(0)
    without, with_them = (draw_rows(clusters, files, Counts(100, 40, 60, safety), seed=3) for safety in (0, 50))
    assert without.train.tolist() == with_them.train.tolist()
    assert without.safety.size == 0


def test_too_few_rows_are_refused() -> None:
    clusters, files = two_files(0)
    with pytest.raises(DataError, match="too few to draw 500 rows for training"):
        draw_rows(clusters, files, Counts(1000, 40, 60), seed=0)


def test_row_shares_and_cluster_shares_are_one_law_in_calibration_and_test() -> None:
    clusters, files = two_files(0)
    large = np.bincount(clusters)[clusters] >= 4
    shares = []
    for seed in range(200):
        draw = draw_rows(clusters, files, Counts(100, 40, 60), seed=seed)
        shares.append([large[draw.calibration].mean(), large[draw.test].mean()])
    calibration, test = np.mean(shares, axis=0)
    assert abs(calibration - test) < 0.02
