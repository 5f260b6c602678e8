"""Evaluation of a policy on labelled rows that it was not made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from calibrate.compute.cache import open_cache
from calibrate.compute.progress import progress_bars
from calibrate.config.expert import ExpertSection
from calibrate.evaluate.calls import Calls
from calibrate.evaluate.grid import policy_grid, policy_share
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import Study, measure_study
from calibrate.expert_scores.ask import score_with
from calibrate.expert_scores.refused import RefusedRow
from calibrate.expert_scores.requests import ExpertScores
from calibrate.features.scoring import score_rows
from calibrate.pipeline.material import find_overlong
from calibrate.risk.splits import one_per_cluster
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import begin_with, find_clusters
from calibrate.rows.turns import ScoredTurns, Turns, collect_turns
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.python import open_base_model
from ctd_guardrail.config.source import PythonSourceConfig
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.match import RECORDED, check_fingerprint, check_normaliser
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.runtime.factory import Factory

__all__ = ["Judged", "PolicyStudy", "choose_rows", "study_policy"]


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows that a policy is judged on.

    Attributes:
        rows: Indices into the data set, ascending: one of each cluster, like calibration rows.
        counted: Rows whose conversations show the realised rate, one from each cluster of the rows that the policy was
            not made from.
        used: Number of rows that the policy was made from, or that depend on one of those.
        dependent: Number of other rows that depend on a judged row.
        unusable: Number of other rows that lack a label or have a last turn that the base model cannot read.
        refused: Rows that the expert refused. No figure counts them.
    """

    rows: IntArray
    counted: IntArray
    used: int
    dependent: int
    unusable: int = 0
    refused: tuple[RefusedRow, ...] = ()

    def without(self, refused: tuple[RefusedRow, ...]) -> Judged:
        """Return the rows without those that the expert refused."""
        rows = self.rows[~np.isin(self.rows, [each.row for each in refused])]
        return replace(self, rows=rows, refused=refused)


@dataclass(frozen=True, slots=True)
class PolicyStudy:
    """A study, and the rows and policy behind it.

    Attributes:
        study: The figures.
        policy: The policy that was judged.
        rows: The judged rows with all scores.
        judged: Indices of these rows in the data, and the number of rows that were left out.
        dataset: The data.
        expert: Identity of the expert that gave the scores.
        is_of_one_law: Whether test and calibration rows come from the same files.
        calls: The budget in force and its use on the conversations of the judged rows.
    """

    study: Study
    policy: Policy
    rows: ScoredRows
    judged: Judged
    dataset: Dataset
    expert: str
    is_of_one_law: bool
    calls: Calls

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
                "unusable": self.judged.unusable,
                "refused": len(self.judged.refused),
            },
            "refused": [each.to_dict() for each in self.judged.refused],
            "budget": {
                "alpha": self.calls.certificate.alpha,
                "delta": self.calls.certificate.delta,
                "threshold": self.calls.threshold,
                "expected": self.calls.expected,
                **self.calls.to_dict(),
            },
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
    device: str = "auto",
    activations: PythonSourceConfig | None = None,
    ask_refused_again: bool = False,
) -> PolicyStudy:
    """Judge a policy on labelled rows, at the certificate in force.

    Args:
        folder: The policy.
        files: JSON lines, as for a calibration. Rows that the policy was made from are left out.
        cache: Folder of saved expert scores.
        console: Where progress is drawn.
        expert_column: Field with recorded expert scores.
        expert: Expert to ask. Without a field and an expert, the field of the calibration is read.
        device: ``auto``, ``cpu``, or a torch device.
        activations: Python code that computes activations; None: the base model is a Hugging Face model.
        ask_refused_again: Whether to ask again about rows that the expert refused in an earlier run.

    Raises:
        PolicyError: A policy folder cannot be used.
        ConfigError: There is no source of expert scores.
        DataError: A row is malformed, no rows of both labels are left, or the expert refused too many.
        ExpertError: The expert failed. The scores so far are saved.
        ActivationError: The base model cannot be loaded.
    """
    policy = read_policy(folder)
    manifest = policy.manifest
    source = _recorded_column(policy, expert_column) if expert is None else expert
    column = source if isinstance(source, str) else None
    dataset = read_dataset(files, expert_column=column, context=manifest.context, for_budget=True)
    clusters = find_clusters(dataset)
    engine = _open_base_model(policy, device=device, source=activations)
    dataset = dataset.without(find_overlong(engine, dataset.conversations))
    judged = choose_rows(dataset, clusters, policy)
    chosen = judged.rows
    turns = collect_turns(dataset, judged.counted)
    turns = turns.with_overlong(find_overlong(engine, turns.units))
    with progress_bars(console) as progress:
        p, d, counted = _score(policy, engine, dataset, chosen, turns, progress=progress)
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
    )
    known = {record.sha256 for record in manifest.data}
    is_of_one_law = all(record.sha256 in known for record in dataset.records)
    figures = measure_study(policy_grid(policy, rows), alpha=policy_share(policy), one_law=is_of_one_law)
    running = plan(policy, Budget())
    calls = Calls(
        running.certificate, counted.readable, running.rule.threshold, running.expected_rate, policy.unreadable
    )
    return PolicyStudy(figures, policy, rows, judged, dataset, identity, is_of_one_law, calls)


def choose_rows(dataset: Dataset, clusters: IntArray, policy: Policy) -> Judged:
    """Return the rows that the policy was not made from, one of each cluster.

    On the files of the calibration these are the test rows of the calibration.

    Args:
        dataset: The rows.
        clusters: Cluster of each row, shape [n].
        policy: The policy that is judged.

    Raises:
        DataError: The policy does not state its rows, or the rows that are left have one label.
    """
    if policy.used_rows is None:
        raise DataError(
            "the policy does not record its own rows, so some of these rows may be among them",
            hint="Calibrate again with this version",
        )
    used = begin_with(dataset.conversations, policy.used_rows)
    free = np.flatnonzero(~np.isin(clusters, clusters[used]))
    usable = free[(dataset.is_labelled & dataset.is_readable)[free]]
    rows, counted = (
        some[one_per_cluster(clusters[some].tolist(), seed=policy.manifest.calibration.seed)] for some in (usable, free)
    )
    if np.unique(dataset.labels[rows]).size != 2:  # noqa: PLR2004 - safe and unsafe
        raise DataError(
            f"{rows.size} of {len(dataset)} rows are left to test the policy, and they do not have both labels; "
            f"{len(dataset) - free.size} belong to the policy's own rows or depend on them",
            hint="Give rows that its training and calibration did not use",
        )
    return Judged(
        rows,
        counted,
        used=len(dataset) - free.size,
        dependent=usable.size - rows.size,
        unusable=free.size - usable.size,
    )


def _recorded_column(policy: Policy, column: str | None) -> str:
    if column is not None:
        return column
    if not policy.manifest.expert.startswith(RECORDED):
        raise ConfigError(
            "there is no source of expert scores", hint="Name a field with --expert-column, or --expert-config FILE"
        )
    return policy.manifest.expert.removeprefix(RECORDED)


def _score(
    policy: Policy, engine: BatchedBaseModel, dataset: Dataset, rows: IntArray, turns: Turns, *, progress: Progress
) -> tuple[FloatArray, FloatArray, ScoredTurns]:
    """Return p and d of the rows, each of shape [rows], and the scores of the turns."""
    places = turns.readable
    units = [dataset.conversations[row] for row in rows.tolist()] + [turns.units[place] for place in places.tolist()]
    view = dataset.view(units, np.append(rows, turns.rows[places]))
    probes = Probes(policy.manifest.probe, policy.probe)
    p, d = score_rows(probes, engine, view, np.arange(len(units)), progress=progress)
    return p[: rows.size], d[: rows.size], turns.scored(d[rows.size :])


def _open_base_model(policy: Policy, *, device: str, source: PythonSourceConfig | None) -> BatchedBaseModel:
    """Return the base model that the policy was made with."""
    factory = None if source is None else Factory(*source.call_in(Path()))
    engine = open_base_model(policy.manifest.activations, factory, device=device)
    check_normaliser(policy.manifest)
    check_fingerprint(policy.manifest, engine.fingerprint)
    return engine


def _expert_scores(
    dataset: Dataset,
    rows: IntArray,
    source: str | ExpertSection,
    *,
    cache: Path,
    progress: Progress,
    ask_refused_again: bool,
) -> tuple[str, ExpertScores]:
    """Return the identity of the expert, and its scores."""
    if isinstance(source, str):
        return f"{RECORDED}{source}", ExpertScores(np.asarray(dataset.expert)[rows])
    return score_with(
        source, dataset, rows, cache=open_cache(cache), progress=progress, ask_refused_again=ask_refused_again
    )


def _name(dataset: Dataset, row: int) -> str:
    return f"{dataset.files[dataset.file_of_row[row]].name}:{dataset.line_of_row[row]}"
