"""Split of the rows into training, calibration and test. Dependent rows stay in one part.

Scores of near-duplicates and of turns of one conversation are dependent. A certificate that counts them as independent
uses an n that it does not have (five copies of each row: 21% violations at delta = 5%). A test on copies of training
rows looks too good.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from calibrate.config.file import SplitConfig
from calibrate.risk.splits import one_per_cluster, require_disjoint
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import BoolArray, DigestArray, IntArray
from ctd_guardrail.errors import DataError
from ctd_guardrail.text.conversation import Conversation

__all__ = ["PARTS", "Split", "begin_with", "find_clusters", "row_digests", "split_rows"]


PARTS: Final = ("train", "calibration", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """Row indices of the three parts, ascending.

    Rows without a label or with a last turn that the base model cannot read serve the budget alone.

    Attributes:
        train: Rows that both probes are trained on.
        calibration: Rows that risks and the best threshold are measured on, one from each cluster. If no calibration
            row has a label, these have none. If a coin gave the labels, they are drawn without regard to these.
        test: Rows that the cascade is evaluated on, one from each cluster: of the calibration rows' law.
        clusters: Cluster of every row of the data set, shape [n].
        certified: Rows whose conversations certify the budget, one from each cluster of the calibration part.
        counted: Rows whose conversations show the realised rate, one from each cluster of the test part.
        left_out: Calibration rows beyond the first of their cluster, which no risk is measured on.
        test_left_out: Test rows beyond the first of their cluster, likewise.
        unlabelled: Rows without a label in each part.
        unreadable: Other rows of each part with a last turn that the base model cannot read.

    Raises:
        DataError: A row or a cluster is in two parts, two calibration or test rows are of one cluster, or a part is
            empty.
    """

    train: IntArray
    calibration: IntArray
    test: IntArray
    clusters: IntArray
    certified: IntArray
    counted: IntArray
    left_out: int = 0
    test_left_out: int = 0
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    unreadable: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts are disjoint, not empty and free of dependent rows."""
        parts = {name: getattr(self, name) for name in PARTS}
        whole = {"train": self.train, "calibration": self.certified, "test": self.counted}
        require_disjoint(**{name: rows.tolist() for name, rows in parts.items()})
        for each in (parts, whole):
            require_disjoint(**{name: np.unique(self.clusters[rows]).tolist() for name, rows in each.items()})
            for name, rows in each.items():
                if not rows.size:
                    raise DataError(f"there are too few rows: none are left for {name}", hint="Give more rows")
            for name in ("calibration", "test"):
                if np.unique(self.clusters[each[name]]).size != each[name].size:
                    raise DataError(f"two {name} rows depend on each other", hint="Keep one row of each cluster")


def split_rows(dataset: Dataset, config: SplitConfig) -> Split:
    """Split a data set.

    Args:
        dataset: The rows. If they have a ``split`` field and the configuration states no shares, the field decides.
        config: Shares and seed.

    Raises:
        DataError: A ``split`` field is missing, unknown, puts rows that depend on each other into two parts, or
            puts a row without a label into training or test; a part is empty.
    """
    clusters = find_clusters(dataset)
    by_shares = dataset.parts is None or config.are_written
    part_of_row = _draw(clusters, config) if by_shares else _read(dataset, clusters)
    members = {name: np.flatnonzero(part_of_row == part) for part, name in enumerate(PARTS)}
    has_label, is_readable = dataset.is_labelled, dataset.is_readable
    usable = {name: rows[(has_label & is_readable)[rows]] for name, rows in members.items()}

    def independent(rows: IntArray) -> IntArray:
        return rows[one_per_cluster(clusters[rows].tolist(), seed=config.seed)]

    certified, judging = independent(members["calibration"]), independent(usable["test"])
    # Without labels, the budget is all that the calibration part serves.
    labelled = usable["calibration"] if config.label_share is None else members["calibration"][:0]
    certifying = independent(labelled) if labelled.size else certified[is_readable[certified]]
    return Split(
        usable["train"],
        certifying,
        judging,
        clusters,
        certified=certified,
        counted=independent(members["test"]),
        left_out=max(0, labelled.size - certifying.size),
        test_left_out=usable["test"].size - judging.size,
        unlabelled={name: int((~has_label[rows]).sum()) for name, rows in members.items()},
        unreadable={name: int((has_label & ~is_readable)[rows].sum()) for name, rows in members.items()},
    )


def find_clusters(*datasets: Dataset) -> IntArray:
    """Number the clusters of rows that depend on each other, shape [rows of all data sets].

    Two rows share a cluster in three cases. They share a ``cluster`` or ``conversation`` field, in any file. Their
    texts differ only in case and white space. Or the turns of one begin with all turns of the other. All rows that
    such pairs connect share a cluster too.
    """
    conversations = [conversation for dataset in datasets for conversation in dataset.conversations]
    named = {
        "cluster": [name for dataset in datasets for name in dataset.clusters],
        "conversation": [name for dataset in datasets for name in dataset.dialogues],
    }
    clusters = DisjointSet(range(len(conversations)))
    first: dict[Hashable, int] = {}
    for row, conversation in enumerate(conversations):
        everything = _everything(conversation)
        clusters.merge(row, first.setdefault(everything, row))
        for column, names in named.items():
            if names[row] is not None:
                clusters.merge(row, first.setdefault((column, names[row]), row))
    for row, conversation in enumerate(conversations):
        for prefix in conversation.prefixes():
            clusters.merge(row, first.get(prefix, row))
    # Clusters are numbered in the order of their first rows.
    first_row: dict[int, int] = {}
    firsts = [first_row.setdefault(clusters[row], row) for row in range(len(conversations))]
    return np.unique(firsts, return_inverse=True)[1].astype(np.int64)


def row_digests(conversations: Iterable[Conversation]) -> DigestArray:
    """Return distinct 64-bit digests of the rows, ascending. A policy keeps those of the rows that it was made from.

    Texts that differ in case or white space alone share a digest. A digest tells whether a given text was among the
    rows. No text can be read from it.
    """
    return np.unique(np.array([_short(_everything(row)) for row in conversations], dtype=np.uint64))


def begin_with(conversations: Sequence[Conversation], digests: DigestArray) -> BoolArray:
    """Return a mask of the conversations that equal, or begin with, a conversation of these digests, shape [n]."""
    known = set(digests.tolist())
    return np.array(
        [any(_short(prefix) in known for prefix in row.prefixes()) for row in conversations], dtype=np.bool_
    )


def _everything(conversation: Conversation) -> bytes:
    return conversation.prefixes()[-1]


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8])


def _draw(clusters: IntArray, config: SplitConfig) -> IntArray:
    """Cut a random order of the clusters at the shares of the rows."""
    sizes = np.bincount(clusters)
    order = np.random.default_rng(config.seed).permutation(sizes.size)
    middles = np.cumsum(sizes[order]) - sizes[order] / 2
    bounds = np.array([config.train, config.train + config.calibration]) * clusters.size
    part_of_cluster = np.empty(sizes.size, dtype=np.int64)
    part_of_cluster[order] = np.searchsorted(bounds, middles, side="right")
    return part_of_cluster[clusters]


def _read(dataset: Dataset, clusters: IntArray) -> IntArray:
    """Take the parts from the rows' ``split`` field."""
    part_of_row = np.empty(len(dataset), dtype=np.int64)
    first: dict[int, int] = {}
    has_label = dataset.is_labelled
    for row, name in enumerate(dataset.parts or ()):
        if name not in PARTS:
            raise dataset.error(
                row,
                "split is missing, but other rows have it" if name is None else f"split {name!r} is unknown",
                hint=f"Use {', '.join(PARTS)} in every row, or state shares under `splits`",
            )
        if name != "calibration" and not has_label[row]:
            raise dataset.error(
                row,
                f"has no label, but is a {'training' if name == 'train' else name} row",
                hint="Only calibration rows may lack one: they serve the budget alone",
            )
        part_of_row[row] = PARTS.index(name)
        leader = first.setdefault(int(clusters[row]), row)
        if part_of_row[leader] != part_of_row[row]:
            raise dataset.error(
                row,
                f"depends on row {dataset.line_of_row[leader]} of {dataset.files[dataset.file_of_row[leader]].name}, "
                "which is in another split",
                hint="Put near-duplicates and turns of one conversation into one split, or state shares under `splits`",
            )
    return part_of_row
