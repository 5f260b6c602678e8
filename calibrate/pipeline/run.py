"""Calibration of a policy from labelled conversations.

The stages are: read, split, activations, expert scores, training, certificate, evaluation, policy. Activations and
expert scores take long and are saved on the way. Training takes a second and is repeated.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import Progress

from calibrate.compute.cache import open_cache
from calibrate.compute.cluster import connect
from calibrate.compute.progress import progress_bars
from calibrate.config.file import CalibrateConfig
from calibrate.evaluate.calls import Calls
from calibrate.evaluate.grid import ALPHAS, Grid, budget_share
from calibrate.evaluate.record import record_grid
from calibrate.evaluate.rows import ScoredRows
from calibrate.expert_scores.ask import score_with
from calibrate.expert_scores.requests import ExpertScores
from calibrate.features import pool_activations
from calibrate.features.pooled_rows import PooledRows
from calibrate.features.scoring import score_rows
from calibrate.pipeline.base_model import open_hidden_states, open_model, open_workers
from calibrate.pipeline.material import Material, SafetyData, check_labels, check_rows, read_safety_data
from calibrate.pipeline.training_inputs import TrainingInputs
from calibrate.risk.certified_risks import certify_performance, to_record
from calibrate.risk.losses import Risk
from calibrate.risk.rows import Rows
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import PARTS, Split, row_digests
from calibrate.rows.turns import ScoredTurns
from calibrate.train import TrainedProbes, train_probes
from calibrate.train.train import layer_columns
from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail._version import __version__
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Certificate, Status, certify, infeasible
from ctd_guardrail.policy.match import RECORDED
from ctd_guardrail.policy.store import CalibrationScores, Policy, write_policy
from ctd_guardrail.runtime.lock import writing

__all__ = ["PipelineResult", "run"]


_PACKAGES: Final = ("torch", "transformers", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """Result of a calibration.

    Attributes:
        output: Folder of the policy.
        policy: The policy as the rail reads it.
        certificate: The budget and its threshold.
        grid: The cascade and its baselines on the test rows.
        split: Rows of each part.
        calls: The budget and its use on the test conversations.
        share: The budget as a share of the turns.
        expert: Expert scores of the rows of all three parts.
        refused: Rows of each part that the expert refused.
        safety_rows: Rows of other files that the safety probe was trained on; 0 if there are none.
        safety_left_out: Rows of those files that depend on a row of ``data.path``, and were left out.
        few_labels: Labels, and calibration rows, of risks that rest on few labels; None: there are none.
    """

    output: Path
    policy: Policy
    certificate: Certificate
    grid: Grid
    split: Split
    calls: Calls
    share: float
    expert: ExpertScores
    refused: dict[str, int]
    safety_rows: int = 0
    safety_left_out: int = 0
    few_labels: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of the calibration and test rows, and of the turns, by trained probes."""

    material: Material
    base_model: BatchedBaseModel
    trained: TrainedProbes
    identity: str
    expert: ExpertScores
    has_score: dict[str, BoolArray]
    calibration: FloatArray
    test: FloatArray
    turns: ScoredTurns
    counted: ScoredTurns


def run(config: CalibrateConfig, *, console: Console, ask_refused_again: bool = False) -> PipelineResult:
    """Calibrate a policy and write it.

    Training, evaluation and the risks leave out the rows that the expert refused, because they have no expert score.
    Their delegation values count in the budget: if such an input is delegated, it costs a call.

    Args:
        config: The content of CALIBRATE.yml.
        console: Console for the progress bars.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ConfigError: A key of the configuration does not fit the base model, or a folder cannot be written to.
        PolicyLockedError: Another process writes the output.
        DataError: A row is malformed or too long, there are too few rows, or the expert refused too many.
        InfeasibleBudgetError: There are too few calibration rows for this alpha and delta.
        ActivationError: The base model cannot be loaded.
        ExpertError: The expert failed. Its scores so far are saved.
        DependencyError: ``package:NAME`` or ray is not installed.
    """
    dataset = read_dataset(
        config.data.path, expert_column=config.data.expert_column, context=config.data.context, for_budget=True
    )
    material = Material.of(dataset, config.splits)
    safety = read_safety_data(config, dataset)
    check_rows(config, material)
    # The lock comes first: a second run would compute for hours and then fail to write.
    with writing(config.output):
        with connect(config.run_on), progress_bars(console) as progress:
            scored = _train_and_score(config, material, safety, progress, ask_refused_again=ask_refused_again)
        return _certify_and_write(config, safety, scored)


def _train_and_score(
    config: CalibrateConfig,
    material: Material,
    safety: SafetyData | None,
    progress: Progress,
    *,
    ask_refused_again: bool,
) -> _Scored:
    """Compute activations and expert scores, train the probes, and score calibration and test rows and the turns."""
    cache = open_cache(config.cache)
    units = material.view()
    needed = [(units, np.arange(len(units))), *([(safety.dataset, safety.rows)] if safety else [])]
    files = open_hidden_states(config, progress, needed)
    base_model = open_model(config, config.base.spec, files)
    material = material.read_by(base_model, config.splits)
    dataset, units = material.dataset, material.view()
    # Activations of vLLM are kept apart from those of this process.
    features = cache if files is None else cache / "hidden-states"
    workers = open_workers(config, base_model)
    everything = np.arange(len(units))
    pooled = pool_activations(units, everything, base_model, cache=features, progress=progress, workers=workers)
    identity, expert = _expert_scores(
        config, dataset, material.asked, cache, progress, ask_refused_again=ask_refused_again
    )
    has_score = {part: ~np.isnan(scores) for part, scores in material.by_part(expert.p).items()}
    split = material.split
    check_labels(dataset, split.train[has_score["train"]], split.test[has_score["test"]])
    inputs = TrainingInputs(base_model, config.probes, config.splits.seed, features, progress, workers)
    trained = _train(
        config, dataset, split, pooled, expert=expert, scored=has_score["train"], safety=safety, inputs=inputs
    )
    if trained.layers != config.base.layers:
        # The rail loads only the layers that the probes read.
        base_model = open_model(config, base_model.spec.model_copy(update={"layers": trained.layers}), files)
        pooled = pooled.columns(layer_columns(trained.layers, config.base.layers, pooled.values.shape[1]))
    judged = everything[split.train.size :]
    if trained.probes.spec.is_linear_in_mean:
        # Their mean activations are known already.
        scores = trained.score(pooled.take(judged))
    else:
        workers = open_workers(config, base_model)
        scores = np.stack(
            score_rows(trained.probes, base_model, units, judged, progress=progress, workers=workers), axis=1
        )
    calibration, test, turns, counted = np.split(scores, material.cuts())
    return _Scored(
        material,
        base_model,
        trained,
        identity,
        expert,
        has_score,
        calibration,
        test,
        material.certified.scored(turns[:, 1]),
        material.counted.scored(counted[:, 1]),
    )


def _certify_and_write(config: CalibrateConfig, safety: SafetyData | None, scored: _Scored) -> PipelineResult:
    """Certify the budget and the risks, evaluate the test rows, and write the policy."""
    material, trained = scored.material, scored.trained
    dataset, split = material.dataset, material.split
    alpha, delta, seed = config.budget.alpha, config.budget.delta, config.splits.seed
    expert = material.by_part(scored.expert.p)
    p, d = scored.calibration.T
    scores, labels = CalibrationScores.from_rows(d=d, p=p), dataset.labels[split.calibration]
    if material.has_labels:
        scores = CalibrationScores.from_rows(d=d, p=p, expert=expert["calibration"], label=labels)
    readable = scored.turns.readable
    turns = None if material.is_of_single_turns else readable
    # The rail's settings decide whether turns that cannot be read cost a call. By default they are blocked.
    certificate = certify(readable, alpha, delta, unit=config.budget.unit, max_turns=config.budget.max_turns)
    if certificate.status is Status.INFEASIBLE:
        raise infeasible(certificate, key="budget.alpha")
    performance, tau = None, config.budget.taus[0]
    if risks := [Risk(risk.metric, risk.max) for risk in config.budget.risk]:
        merged = trained.merge(p, expert["calibration"])
        setting = certify_performance(
            Rows(d, p, merged, labels, config.splits.label_share or 1.0),
            risks,
            alpha=alpha,
            delta=delta,
            taus=config.budget.taus,
            bands=config.budget.bands,
            turns=readable,
            unit=config.budget.unit,
            max_turns=config.budget.max_turns,
        )
        performance, tau = to_record(setting, risks), setting.tau
    kept = np.flatnonzero(scored.has_score["test"])
    test = split.test[kept]
    groups = None if dataset.groups is None else [dataset.groups[row] for row in test]
    p_test, d_test = scored.test[kept].T
    tested = ScoredRows(p_test, d_test, expert["test"][kept], dataset.labels[test], groups, merge=trained.merge)
    grid = Grid(
        tested,
        scores,
        delta=delta,
        tau=tau,
        seed=seed,
        turns=turns,
        max_turns=config.budget.max_turns,
    )
    share = budget_share(alpha, config.budget.unit, readable)
    refused = {part: int((~known).sum()) for part, known in scored.has_score.items()}
    record = {"rows": split.calibration.size, "alpha": alpha, "delta": delta, "seed": seed}
    if turns is not None:
        record |= {"conversations": turns.conversations, "turns": turns.turns}
    manifest = {
        "created_at": datetime.now(UTC),
        "versions": _versions(),
        "activations": scored.base_model.spec,
        "context": config.data.context,
        "fingerprint": scored.base_model.fingerprint,
        "probe": trained.probes.spec,
        "merge": trained.merge,
        "decision_threshold": tau,
        "expert": scored.identity,
        "performance": performance,
        "calibration": record | {"unit": config.budget.unit, "max_turns": config.budget.max_turns},
        "data": [*dataset.records, *(safety.dataset.records if safety else [])],
        "training": {
            **trained.record,
            "split": {part: int(getattr(split, part).size) for part in PARTS},
            "refused": refused,
        },
        "evaluation": record_grid(grid, sorted({*ALPHAS, share})),
    }
    used = material.used()
    if safety is not None:
        used += [safety.dataset.conversations[row] for row in safety.rows]
    policy = write_policy(
        config.output,
        manifest,
        trained.probes.tensors(),
        scores,
        turns=turns,
        used_rows=row_digests(used),
        unreadable=scored.turns.unreadable,
    )
    return PipelineResult(
        output=config.output,
        policy=policy,
        certificate=certificate,
        grid=grid,
        split=split,
        calls=Calls(
            certificate,
            scored.counted.readable,
            certificate.threshold,
            certificate.mean_rate,
            scored.turns.unreadable,
        ),
        share=share,
        expert=scored.expert,
        refused=refused,
        safety_rows=0 if safety is None else safety.rows.size,
        safety_left_out=0 if safety is None else len(safety.dataset) - safety.rows.size,
        few_labels=None if material.label_share is None else (int((~np.isnan(labels)).sum()), labels.size),
    )


def _train(
    config: CalibrateConfig,
    dataset: Dataset,
    split: Split,
    pooled: PooledRows,
    *,
    expert: ExpertScores,
    scored: BoolArray,
    safety: SafetyData | None,
    inputs: TrainingInputs,
) -> TrainedProbes:
    """Train on the training rows with an expert score. They come first in the activations and the expert scores."""
    places = np.flatnonzero(scored)
    train, scores = split.train[places], expert.p[places]
    clusters = split.clusters[train]
    used = sum(getattr(split, part).size for part in PARTS)
    return train_probes(
        pooled.take(places),
        dataset.labels[train],
        scores,
        clusters,
        recipe=config.probes,
        seed=config.splits.seed,
        safety=None if safety is None else inputs.safety_rows(safety.dataset, safety.rows, safety.clusters),
        layers=config.base.layers,
        tokens=inputs.token_rows(dataset, train, clusters),
        padded=inputs.padded_rows(dataset, train, clusters, scores, total=used),
    )


def _expert_scores(
    config: CalibrateConfig,
    dataset: Dataset,
    rows: IntArray,
    cache: Path,
    progress: Progress,
    *,
    ask_refused_again: bool,
) -> tuple[str, ExpertScores]:
    """Return the identity of the expert, and its scores."""
    if dataset.expert is not None:
        return f"{RECORDED}{config.data.expert_column}", ExpertScores(dataset.expert[rows])
    if config.expert is None:
        raise ConfigError("there is no source of expert scores", hint="Write `data.expert_column` or `expert`")
    return score_with(
        config.expert,
        dataset,
        rows,
        cache=cache,
        progress=progress,
        run_on=config.run_on,
        ask_refused_again=ask_refused_again,
    )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "ctd-guardrail": __version__, **packages}
