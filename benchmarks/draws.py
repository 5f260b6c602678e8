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
        test: Rows of the evaluation, at most; None takes all that are left. In equal shares of the files too.
    """

    train: int
    calibration: int
    test: int | None


@dataclass(frozen=True, slots=True)
class Draw:
    """Row indices of one seed.

    No cluster is in two parts. Calibration and test have one row of each of their clusters: a certificate speaks of
    draws from one law, and clusters counted once here and row by row there are two laws.
    """

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
    if fewest == 0:
        raise DataError("no rows are left for testing", hint="Lower --train-rows or --calibration-rows")
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
    # The first clusters that hold enough rows train; of each of the next ones, one row certifies or tests.
    training_clusters = int(np.searchsorted(np.cumsum(sizes[order]), train)) + 1
    independent = one_per_cluster(cluster.tolist(), seed=int(rng.integers(2**32)))
    by_rank = independent[np.argsort(ranks[independent])]
    certifying, testing = np.split(by_rank[training_clusters:], [calibration])
    if certifying.size < calibration:
        raise DataError(
            f"a file has {rows.size} rows in {sizes.size} clusters, too few to draw {train} rows for training and "
            f"{calibration} clusters for calibration",
            hint="Lower --train-rows or --calibration-rows",
        )
    yield rows[np.flatnonzero(ranks < training_clusters)]
    yield rows[certifying]
    yield rows[testing[: None if counts.test is None else counts.test // files]]
