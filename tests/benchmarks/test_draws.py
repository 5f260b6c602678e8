import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctd_guardrail.errors import DataError


@pytest.fixture(scope="module")
def draws() -> Any:
    """The module, found as the script finds it: in its own folder."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    # At the end, so that nothing there hides a module of the standard library.
    sys.path.append(folder)
    try:
        import draws  # noqa: PLC0415
    finally:
        sys.path.remove(folder)
    return draws


def two_files(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of up to six rows, in two files of different size."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=200)
    clusters = np.repeat(np.arange(200), sizes)
    return clusters, (clusters >= 80).astype(np.int64)


@given(st.integers(0, 1000))
def test_parts_share_no_cluster_and_what_certifies_and_tests_is_independent(draws: Any, seed: int) -> None:
    clusters, files = two_files(seed)
    draw = draws.draw_rows(clusters, files, draws.Counts(100, 40, 60), seed=seed)
    parts = [set(clusters[part]) for part in (draw.train, draw.calibration, draw.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert (len(parts[1]), len(parts[2])) == (draw.calibration.size, draw.test.size)


@given(st.integers(0, 1000))
def test_every_file_gives_its_equal_share(draws: Any, seed: int) -> None:
    clusters, files = two_files(seed)
    draw = draws.draw_rows(clusters, files, draws.Counts(100, 40, 60), seed=seed)
    assert np.bincount(files[draw.calibration]).tolist() == [20, 20]
    assert np.bincount(files[draw.test]).tolist() == [30, 30]
    # A cluster is not cut, so training may take a few rows more.
    assert all(50 <= count < 56 for count in np.bincount(files[draw.train]))


def test_without_a_count_all_that_is_left_tests_in_equal_shares(draws: Any) -> None:
    clusters, files = two_files(0)
    draw = draws.draw_rows(clusters, files, draws.Counts(100, 40, None), seed=0)
    used = set(clusters[draw.train]) | set(clusters[draw.calibration])
    left = [len(set(clusters[files == file]) - used) for file in (0, 1)]
    assert np.bincount(files[draw.test]).tolist() == [min(left)] * 2


def test_too_few_rows_are_refused(draws: Any) -> None:
    clusters, files = two_files(0)
    with pytest.raises(DataError, match="too few to draw 500 rows for training"):
        draws.draw_rows(clusters, files, draws.Counts(1000, 40, 60), seed=0)


def test_row_shares_and_cluster_shares_are_one_law_in_calibration_and_test(draws: Any) -> None:
    clusters, files = two_files(0)
    large = np.bincount(clusters)[clusters] >= 4
    shares = []
    for seed in range(200):
        draw = draws.draw_rows(clusters, files, draws.Counts(100, 40, 60), seed=seed)
        shares.append([large[draw.calibration].mean(), large[draw.test].mean()])
    calibration, test = np.mean(shares, axis=0)
    assert abs(calibration - test) < 0.02
