"""Which rows of the benchmark's files train, certify and test, for one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.risk.splits import one_per_cluster
from ctd_guardrail.errors import DataError

__all__ = ["Counts", "Draw", "draw_rows"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of each part, over all files together.

    Attributes:
        train: Rows of the delegation value.
        calibration: Rows behind the certificate.
        test: Rows of the evaluation; None takes all that are left, in equal shares of the files.
    """

    train: int
    calibration: int
    test: int | None


@dataclass(frozen=True, slots=True)
class Draw:
    """Row indices of one seed; no cluster is in two parts, and the calibration rows are of different clusters."""

    train: IntArray
    calibration: IntArray
    test: IntArray


def draw_rows(clusters: IntArray, file_of_row: IntArray, counts: Counts, *, seed: int) -> Draw:
    """Draw rows of all files in equal shares.

    Args:
        clusters: Rows of one number depend on each other, shape [n]. No cluster is in two files.
        file_of_row: File of each row, shape [n].
        counts: Sizes of the parts.
        seed: Of the draw.

    Raises:
        DataError: A file has too few rows.
    """
    rng = np.random.default_rng(seed)
    files = np.unique(file_of_row)
    parts = [list(_draw_file(np.flatnonzero(file_of_row == file), clusters, counts, files.size, rng)) for file in files]
    fewest = min(test.size for _, _, test in parts)
    joined = (
        np.concatenate([train for train, _, _ in parts]),
        np.concatenate([calibration for _, calibration, _ in parts]),
        np.concatenate([test[:fewest] for _, _, test in parts]),
    )
    return Draw(*joined)


def _draw_file(
    rows: IntArray, clusters: IntArray, counts: Counts, files: int, rng: np.random.Generator
) -> Iterator[IntArray]:
    """Yield one file's rows of the three parts, whole clusters at a time."""
    train, calibration = counts.train // files, counts.calibration // files
    _, cluster, sizes = np.unique(clusters[rows], return_inverse=True, return_counts=True)
    order = rng.permutation(sizes.size)
    rank = np.empty_like(order)
    rank[order] = np.arange(sizes.size)
    ranks = rank[cluster]
    # The first clusters that hold enough rows train; of each of the next ones, one row certifies.
    training_clusters = int(np.searchsorted(np.cumsum(sizes[order]), train)) + 1
    certifying = np.flatnonzero((ranks >= training_clusters) & (ranks < training_clusters + calibration))
    chosen = certifying[one_per_cluster(cluster[certifying].tolist(), seed=int(rng.integers(2**32)))]
    testing = rng.permutation(np.flatnonzero(ranks >= training_clusters + calibration))
    wanted = testing.size if counts.test is None else counts.test // files
    if chosen.size < calibration or not 0 < wanted <= testing.size:
        raise DataError(
            f"a file has {rows.size} rows in {sizes.size} clusters, too few to draw {train} for training, "
            f"{calibration} for calibration and {counts.test or 'more'} for testing",
            hint="Lower --train-rows, --calibration-rows or --test-rows",
        )
    yield rows[np.flatnonzero(ranks < training_clusters)]
    yield rows[chosen]
    yield rows[testing[:wanted]]
