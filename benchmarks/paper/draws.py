"""Draws the rows of one seed that train, certify and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.risk.splits import one_per_cluster
from ctd_guardrail._typing import IntArray
from ctd_guardrail.errors import DataError

__all__ = ["Counts", "Draw", "draw_rows"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of each part, over all files together.

    Attributes:
        train: Rows that train the delegation value.
        calibration: Rows that certify.
        test: Most rows of the evaluation, in equal shares of the files.
        safety: Rows of the safety probe, if it has its own.
    """

    train: int
    calibration: int
    test: int
    safety: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Row indices of one seed.

    No cluster is in two parts. Calibration and test have one row of each of their clusters, because a certificate needs
    both to be draws from one law. Clusters counted once in one part and row by row in the other would be two laws.
    """

    train: IntArray
    safety: IntArray
    calibration: IntArray
    test: IntArray


def draw_rows(clusters: IntArray, file_of_row: IntArray, counts: Counts, *, seed: int) -> Draw:
    """Draw rows of all files in equal shares.

    Args:
        clusters: Number of the cluster of each row, shape [n]. Rows of one cluster depend on each other. No cluster is
            in two files.
        file_of_row: File of each row, shape [n].
        counts: Sizes of the parts.
        seed: Seed of the draw.

    Raises:
        DataError: A file has too few rows.
    """
    rng = np.random.default_rng(seed)
    files = np.unique(file_of_row)
    drawn = [_draw_file(np.flatnonzero(file_of_row == file), clusters, counts, files.size, rng) for file in files]
    fewest = min(part.test.size for part in drawn)
    if fewest == 0:
        raise DataError("no rows are left for testing", hint="Lower the numbers of the other rows")
    return Draw(
        train=np.concatenate([part.train for part in drawn]),
        safety=np.concatenate([part.safety for part in drawn]),
        calibration=np.concatenate([part.calibration for part in drawn]),
        test=np.concatenate([part.test[:fewest] for part in drawn]),
    )


def _draw_file(rows: IntArray, clusters: IntArray, counts: Counts, files: int, rng: np.random.Generator) -> Draw:
    """Draw the share of one file, in whole clusters."""
    train, safety, calibration, test = (
        count // files for count in (counts.train, counts.safety, counts.calibration, counts.test)
    )
    _, cluster, sizes = np.unique(clusters[rows], return_inverse=True, return_counts=True)
    order = rng.permutation(sizes.size)
    rank = np.empty_like(order)
    rank[order] = np.arange(sizes.size)
    ranks = rank[cluster]
    # The first clusters with enough rows train the delegation value, the next ones the safety probe. Of each further
    # cluster, one row certifies or tests.
    held = np.cumsum(sizes[order])
    training = int(np.searchsorted(held, train)) + 1
    fitted = int(np.searchsorted(held, held[training - 1] + safety)) + 1 if safety else training
    independent = one_per_cluster(cluster.tolist(), seed=int(rng.integers(2**32)))
    by_rank = independent[np.argsort(ranks[independent])]
    certifying, testing = np.split(by_rank[fitted:], [calibration])
    if certifying.size < calibration:
        raise DataError(
            f"a file has {rows.size} rows in {sizes.size} clusters, too few to draw {train + safety} rows for training "
            f"and {calibration} clusters for calibration",
            hint="Lower the numbers of rows",
        )
    return Draw(
        train=rows[np.flatnonzero(ranks < training)],
        safety=rows[np.flatnonzero((ranks >= training) & (ranks < fitted))],
        calibration=rows[certifying],
        test=rows[testing[:test]],
    )
