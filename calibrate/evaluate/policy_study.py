"""A policy judged on data: on those of its rows that it was not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from calibrate.compute.cache import open_cache
from calibrate.compute.progress import progress_bars
from calibrate.config.expert import ExpertSection
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import Study, study
from calibrate.expert_scores.ask import ExpertScores, score_with
from calibrate.expert_scores.refused import RefusedRow
from calibrate.features.scoring import score_rows
from calibrate.risk.splits import one_per_cluster
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import begin_with, find_clusters
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.match import RECORDED, check_fingerprint, check_normaliser
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.probes.probes import Probes

__all__ = ["Judged", "PolicyStudy", "choose_rows", "study_policy"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows that a policy may be judged on.

    Attributes:
        rows: Indices into the data set, ascending: one of each cluster, as calibration rows are.
        used: Rows that the policy, or a policy beside it, was made from, or that depend on one of those.
        dependent: Other rows that depend on a row that is judged.
        refused: Rows that the expert refused: no figure counts them.
    """

    rows: IntArray
    used: int
    dependent: int
    refused: tuple[RefusedRow, ...] = ()

    def without(self, refused: tuple[RefusedRow, ...]) -> Judged:
        """Return the rows that are left when the expert refuses some."""
        rows = self.rows[~np.isin(self.rows, [each.row for each in refused])]
        return replace(self, rows=rows, refused=refused)


@dataclass(frozen=True, slots=True)
class PolicyStudy:
    """A study and what it was made of.

    Attributes:
        study: The figures.
        policy: What was judged.
        rows: The judged rows with everybody's scores.
        judged: Which rows of the data these are, and how many were left out.
        dataset: The data.
        expert: Whose scores they are.
        is_of_one_law: Whether test and calibration rows come from the same files.
    """

    study: Study
    policy: Policy
    rows: ScoredRows
    judged: Judged
    dataset: Dataset
    expert: str
    is_of_one_law: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the study and its origin as JSON-able values."""
        return {
            "expert": self.expert,
            "policy_expert": self.policy.manifest.expert,
            "policy_sha256": self.policy.manifest.tensors_sha256,
            "data": [record.model_dump() for record in self.dataset.records],
            "is_of_one_law": self.is_of_one_law,
            "left_out": {
                "used": self.judged.used,
                "dependent": self.judged.dependent,
                "refused": len(self.judged.refused),
            },
            "refused": [each.to_dict() for each in self.judged.refused],
            **self.study.to_dict(),
        }


def study_policy(
    folder: Path,
    files: Sequence[Path],
    *,
    cache: Path,
    console: Console,
    expert_column: str | None = None,
    expert: ExpertSection | None = None,
    binary_folder: Path | None = None,
    device: str = "auto",
    ask_refused_again: bool = False,
) -> PolicyStudy:
    """Judge a policy on labelled rows, at the certificate that is in force.

    Args:
        folder: The policy.
        files: JSON lines, as for a calibration. Rows that the policy was made from are left out.
        cache: Folder of the journal of expert scores.
        console: Where progress is drawn.
        expert_column: Field with recorded expert scores.
        expert: Expert to ask; with neither, the field that the policy was calibrated with is taken.
        binary_folder: A policy whose delegation value was trained on the binary target, to be compared with.
        device: ``auto``, ``cpu``, or a torch device.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        PolicyError: A policy folder cannot be used.
        ConfigError: There is no source of expert scores.
        DataError: A row is malformed, no rows of both labels are left, or the expert refused too many.
        ExpertError: The expert failed; what it has said so far is saved.
        ActivationError: The base model cannot be loaded.
    """
    policy = read_policy(folder)
    binary = None if binary_folder is None else read_policy(binary_folder)
    manifest = policy.manifest
    source = _recorded_column(policy, expert_column) if expert is None else expert
    column = source if isinstance(source, str) else None
    dataset = read_dataset(files, expert_column=column, context=manifest.context)
    clusters = find_clusters(dataset)
    judged = choose_rows(dataset, clusters, [policy] if binary is None else [policy, binary])
    chosen = judged.rows
    with progress_bars(console) as progress:
        p, d = _score(policy, dataset, chosen, device=device, progress=progress)
        d_binary = None if binary is None else _score(binary, dataset, chosen, device=device, progress=progress)[1]
        identity, scores = _expert_scores(
            dataset, chosen, source, cache=cache, progress=progress, ask_refused_again=ask_refused_again
        )
    scored = np.flatnonzero(~np.isnan(scores.p))
    judged = judged.without(scores.refused)
    chosen = judged.rows
    rows = ScoredRows(
        p[scored],
        d[scored],
        scores.p[scored],
        dataset.labels[chosen],
        None if dataset.groups is None else [dataset.groups[row] for row in chosen],
        cluster=clusters[chosen],
        name=[_name(dataset, row) for row in chosen.tolist()],
        merge=manifest.merge,
        binary=None if d_binary is None else d_binary[scored],
    )
    known = {record.sha256 for record in manifest.data}
    is_of_one_law = all(record.sha256 in known for record in dataset.records)
    figures = study(
        rows,
        policy.calibration,
        alpha=manifest.calibration.alpha,
        delta=spent_delta(manifest.calibration.delta, len(manifest.recalibrations)),
        tau=manifest.decision_threshold,
        seed=manifest.calibration.seed,
        one_law=is_of_one_law,
        traffic=policy.traffic,
    )
    return PolicyStudy(figures, policy, rows, judged, dataset, identity, is_of_one_law)


def choose_rows(dataset: Dataset, clusters: IntArray, policies: Sequence[Policy]) -> Judged:
    """Return the rows that none of the policies was made from, one of each cluster.

    On the files of the calibration these are the test rows of the calibration.

    Args:
        dataset: The rows.
        clusters: Cluster of each row, shape [n].
        policies: The one that is judged, and those that are compared with it.

    Raises:
        DataError: A policy does not say what it was made from, or no rows of both labels are left.
    """
    used = np.zeros(len(dataset), dtype=np.bool_)
    for policy in policies:
        if policy.used_rows is None:
            raise DataError(
                "the policy does not say which rows it was made from, so some of these may be among them",
                hint="Calibrate again with this version",
            )
        used |= begin_with(dataset.conversations, policy.used_rows)
    free = np.flatnonzero(~np.isin(clusters, clusters[used]))
    rows = free[one_per_cluster(clusters[free].tolist(), seed=policies[0].manifest.calibration.seed)]
    if np.unique(dataset.labels[rows]).size != 2:  # noqa: PLR2004 - safe and unsafe
        raise DataError(
            f"{rows.size} of {len(dataset)} rows are left to judge the policy on, and not of both labels; "
            f"{len(dataset) - free.size} are, or depend on, rows that it was made from",
            hint="Give rows that had no part in its training and calibration",
        )
    return Judged(rows, used=len(dataset) - free.size, dependent=free.size - rows.size)


def _recorded_column(policy: Policy, column: str | None) -> str:
    if column is not None:
        return column
    if not policy.manifest.expert.startswith(RECORDED):
        raise ConfigError(
            "there is no source of expert scores", hint="Name a field with --expert-column, or --expert-config FILE"
        )
    return policy.manifest.expert.removeprefix(RECORDED)


def _score(
    policy: Policy, dataset: Dataset, rows: NDArray[np.int64], *, device: str, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return p and d of the rows through the policy's own base model and probes, each of shape [rows]."""
    engine = load_base_model(policy.manifest.activations, device=device)
    check_normaliser(policy.manifest)
    check_fingerprint(policy.manifest, engine.fingerprint)
    return score_rows(Probes(policy.manifest.probe, policy.probe), engine, dataset, rows, progress=progress)


def _expert_scores(
    dataset: Dataset,
    rows: IntArray,
    source: str | ExpertSection,
    *,
    cache: Path,
    progress: Progress,
    ask_refused_again: bool,
) -> tuple[str, ExpertScores]:
    """Return whose scores they are, and the scores."""
    if isinstance(source, str):
        return f"{RECORDED}{source}", ExpertScores(np.asarray(dataset.expert)[rows])
    return score_with(
        source, dataset, rows, cache=open_cache(cache), progress=progress, ask_refused_again=ask_refused_again
    )


def _name(dataset: Dataset, row: int) -> str:
    return f"{dataset.files[dataset.file_of_row[row]].name}:{dataset.line_of_row[row]}"
