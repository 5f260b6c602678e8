"""From labelled conversations to a policy, in a straight line.

read, split, activations, expert scores, training, certificate, evaluation, policy. The two long stages save what they
have as they go; training takes a second and is simply done again.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from calibrate.compute.cache import open_cache
from calibrate.compute.cluster import connect
from calibrate.compute.progress import progress_bars
from calibrate.compute.ray import RayWorkers
from calibrate.compute.workers import InProcess, Workers
from calibrate.config.file import CalibrateConfig
from calibrate.evaluate import ALPHAS, Evaluation, ScoredRows, evaluate
from calibrate.expert_scores.ask import ExpertScores, score_with
from calibrate.features import pool_activations
from calibrate.features.hidden_states import HiddenStateFiles, HiddenStatesSource, check_rows, scan_files
from calibrate.features.pooled_rows import PooledRows
from calibrate.features.scoring import score_rows
from calibrate.risk.certified_risks import certify_performance, to_record
from calibrate.risk.rows import Rows
from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.splits import PARTS, Split, find_clusters, row_digests, split_rows
from calibrate.train import TrainedProbes, train_probes
from calibrate.train.crossfit import check_classes
from calibrate.train.preparation import Preparation
from calibrate.train.probes import layer_columns
from ctd_guardrail import __version__
from ctd_guardrail.activations.base_model import BatchedBaseModel, load_base_model
from ctd_guardrail.activations.huggingface import HuggingFaceSource, open_tokenizer
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ConfigError, DataError, InfeasibleBudgetError
from ctd_guardrail.policy.budget import Certificate, Status, certify, min_alpha, min_rows
from ctd_guardrail.policy.match import RECORDED
from ctd_guardrail.policy.store import CalibrationScores, Policy, write_policy
from ctd_guardrail.runtime.lock import writing

__all__ = ["PipelineResult", "run"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_PACKAGES: Final = ("torch", "transformers", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """What a run has produced.

    Attributes:
        output: Folder of the policy.
        policy: The policy as the rail reads it.
        certificate: The budget and its threshold.
        evaluation: The cascade and its baselines on the test rows.
        tested: The test rows with everybody's scores.
        split: Which rows did what.
        expert: Expert scores of the rows of all three parts.
        refused: Rows of each part that the expert refused.
        safety_rows: Rows of other files that the safety probe was trained on; 0 where there are none.
        safety_left_out: Rows of those files that are, or nearly are, among the rows of ``data.path``.
    """

    output: Path
    policy: Policy
    certificate: Certificate
    evaluation: Evaluation
    tested: ScoredRows
    split: Split
    expert: ExpertScores
    refused: dict[str, int]
    safety_rows: int = 0
    safety_left_out: int = 0


@dataclass(frozen=True, slots=True)
class _SafetyData:
    dataset: Dataset
    rows: IntArray
    clusters: IntArray


def run(config: CalibrateConfig, *, console: Console, ask_refused_again: bool = False) -> PipelineResult:
    """Calibrate a policy and write it.

    A row that the expert refuses has no score of it. Training and evaluation are done without such rows, and so are
    the risks. Their delegation values are known, and count in the budget: delegated, they cost a call all the same.

    Args:
        config: The content of CALIBRATE.yml.
        console: Where progress is drawn.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ConfigError: A key of the configuration does not fit the base model, or a folder cannot be written to.
        PolicyLockedError: Another process writes the output.
        DataError: A row is malformed or too long, there are too few rows, or the expert refused too many.
        InfeasibleBudgetError: There are too few calibration rows for this alpha and delta.
        ActivationError: The base model cannot be loaded.
        ExpertError: The expert failed; what it has said so far is saved.
        DependencyError: ``package:NAME`` or ray is not installed.
    """
    dataset = read_dataset(config.data.path, expert_column=config.data.expert_column, context=config.data.context)
    split = split_rows(dataset, config.splits)
    safety = _read_safety_data(config, dataset)
    _check_rows(config, dataset, split)
    # From here on: a second run would compute for hours what it could not write.
    with writing(config.output):
        return _run(config, console, dataset, split, safety, ask_refused_again=ask_refused_again)


def _run(
    config: CalibrateConfig,
    console: Console,
    dataset: Dataset,
    split: Split,
    safety: _SafetyData | None,
    *,
    ask_refused_again: bool,
) -> PipelineResult:
    cache = open_cache(config.cache)
    rows = np.concatenate([split.train, split.calibration, split.test])
    cuts = [split.train.size, split.train.size + split.calibration.size]

    with connect(config.run_on), progress_bars(console) as progress:
        files = _hidden_states(config, progress, (dataset, rows), *([(safety.dataset, safety.rows)] if safety else []))
        engine = _engine(config, config.base.spec, files)
        # What two engines have read is not mixed.
        features = cache if files is None else cache / "hidden-states"
        workers = _workers(config, engine)
        pooled = pool_activations(dataset, rows, engine, cache=features, progress=progress, workers=workers)
        identity, expert = _expert_scores(config, dataset, rows, cache, progress, ask_refused_again=ask_refused_again)
        scored = dict(zip(PARTS, np.split(~np.isnan(expert.p), cuts), strict=True))
        _check_labels(dataset, split.train[scored["train"]], split.test[scored["test"]])
        prepare = Preparation(engine, config.probes, config.splits.seed, features, progress, workers)
        trained = _train(
            config, dataset, split, pooled, expert=expert, scored=scored["train"], safety=safety, prepare=prepare
        )
        if trained.layers != config.base.layers:
            # The rail loads no more of the base model than the probes read.
            engine = _engine(config, engine.spec.model_copy(update={"layers": trained.layers}), files)
            pooled = pooled.columns(layer_columns(trained.layers, config.base.layers, pooled.values.shape[1]))
        judged = np.arange(cuts[0], rows.size)
        if trained.probes.spec.is_linear_in_mean:
            # Their mean activations are there already.
            p, d = trained.score(pooled.take(judged)).T
        else:
            workers = _workers(config, engine)
            p, d = score_rows(trained.probes, engine, dataset, rows[judged], progress=progress, workers=workers)

    e, labels = expert.p[judged], dataset.labels[rows[judged]]
    calibration = slice(0, split.calibration.size)
    test = split.calibration.size + np.flatnonzero(scored["test"])
    scores = CalibrationScores.from_rows(
        d=d[calibration], p=p[calibration], expert=e[calibration], label=labels[calibration]
    )
    certificate = certify(scores.d, config.budget.alpha, config.budget.delta)
    performance, tau = None, config.budget.taus[0]
    if config.budget.method != "closed_form":
        held = np.flatnonzero(scored["calibration"])
        held_rows = Rows(d[held], p[held], trained.merge(p[held], e[held]), labels[held])
        setting = certify_performance(held_rows, config.budget, refused=d[calibration][~scored["calibration"]])
        performance, tau = to_record(setting, config.budget), setting.tau
    groups = None if dataset.groups is None else [dataset.groups[row] for row in rows[judged][test]]
    tested = ScoredRows(p[test], d[test], e[test], labels[test], groups, merge=trained.merge)
    evaluation = evaluate(
        tested,
        scores,
        delta=config.budget.delta,
        alphas=sorted({*ALPHAS, config.budget.alpha}),
        tau=tau,
        seed=config.splits.seed,
    )
    refused = {part: int((~has_score).sum()) for part, has_score in scored.items()}
    manifest = {
        "created_at": datetime.now(UTC),
        "versions": _versions(),
        "activations": engine.spec,
        "context": config.data.context,
        "fingerprint": engine.fingerprint,
        "probe": trained.probes.spec,
        "merge": trained.merge,
        "decision_threshold": tau,
        "expert": identity,
        "performance": performance,
        "calibration": {
            "rows": split.calibration.size,
            "alpha": config.budget.alpha,
            "delta": config.budget.delta,
            "seed": config.splits.seed,
        },
        "data": [*dataset.records, *(safety.dataset.records if safety else [])],
        "training": {
            **trained.record,
            "split": {part: int(getattr(split, part).size) for part in PARTS},
            "refused": refused,
        },
        "evaluation": evaluation.to_dict(),
    }
    used = [dataset.conversations[row] for row in rows[: cuts[1]]]
    if safety is not None:
        used += [safety.dataset.conversations[row] for row in safety.rows]
    policy = write_policy(config.output, manifest, trained.probes.tensors(), scores, used_rows=row_digests(used))
    return PipelineResult(
        output=config.output,
        policy=policy,
        certificate=certificate,
        evaluation=evaluation,
        tested=tested,
        split=split,
        expert=expert,
        refused=refused,
        safety_rows=0 if safety is None else safety.rows.size,
        safety_left_out=0 if safety is None else len(safety.dataset) - safety.rows.size,
    )


def _read_safety_data(config: CalibrateConfig, dataset: Dataset) -> _SafetyData | None:
    """Read the rows for the safety probe, without those that depend on a row of the other files.

    A probe that has seen a calibration or test row is surer of it than of the deployment's inputs.
    """
    if config.data.safety_path is None:
        return None
    safety = read_dataset(config.data.safety_path, context=config.data.context)
    clusters = find_clusters(dataset, safety)
    own = clusters[len(dataset) :]
    rows = np.flatnonzero(~np.isin(own, clusters[: len(dataset)]))
    check_classes(safety.labels[rows], purpose="the safety probe")
    return _SafetyData(safety, rows, own[rows])


def _check_rows(config: CalibrateConfig, dataset: Dataset, split: Split) -> None:
    """Refuse what cannot end well before anything is computed, asked or written.

    Raises:
        DataError: Training or test rows lack a label.
        InfeasibleBudgetError: There are too few calibration rows.
        ConfigError: The output is no folder.
    """
    if config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"{config.output} is not a folder", key="output", hint="Name a folder for the policy")
    parent = next(folder for folder in (config.output, *config.output.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"{parent} cannot be written to", key="output", hint="Name another folder")
    _check_labels(dataset, split.train, split.test)
    alpha, delta, n = config.budget.alpha, config.budget.delta, split.calibration.size
    # Whether n scores can certify alpha does not depend on the scores.
    if certify(np.zeros(n), alpha, delta).status is Status.INFEASIBLE:
        needed, smallest = min_rows(alpha, delta), min_alpha(n, delta)
        raise InfeasibleBudgetError(
            f"{n} calibration rows cannot certify alpha = {alpha} at delta = {delta}",
            alpha=alpha,
            alpha_min=smallest,
            n_min=needed,
            hint=f"It takes {needed} calibration rows; the smallest alpha that {n} can certify is {smallest:.4f}",
        )


def _check_labels(dataset: Dataset, train: IntArray, test: IntArray) -> None:
    check_classes(dataset.labels[train], purpose="training")
    if np.unique(dataset.labels[test]).size <= 1:
        raise DataError(
            f"all {test.size} test rows have one label", hint="Give more rows, or a larger share to testing"
        )


def _train(
    config: CalibrateConfig,
    dataset: Dataset,
    split: Split,
    pooled: PooledRows,
    *,
    expert: ExpertScores,
    scored: BoolArray,
    safety: _SafetyData | None,
    prepare: Preparation,
) -> TrainedProbes:
    """Train on the training rows with a score: they come first in the activations and the expert's scores."""
    places = np.flatnonzero(scored)
    train, scores = split.train[places], expert.p[places]
    clusters = split.clusters[train]
    used = sum(getattr(split, part).size for part in PARTS)
    return train_probes(
        pooled.take(places),
        dataset.labels[train],
        scores,
        clusters,
        seed=config.splits.seed,
        safety=None if safety is None else prepare.safety_rows(safety.dataset, safety.rows, safety.clusters),
        options=config.probes,
        layers=config.base.layers,
        tokens=prepare.token_rows(dataset, train, clusters),
        padded=prepare.padded_rows(dataset, train, clusters, scores, total=used),
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
    """Return whose scores they are, and the scores."""
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


def _hidden_states(
    config: CalibrateConfig, progress: Progress, *needed: tuple[Dataset, IntArray]
) -> HiddenStateFiles | None:
    """Return the files that vLLM has written, after checking that they hold the rows that are needed."""
    if config.hidden_states is None:
        return None
    layers = config.hidden_states.layers or config.base.layers
    files = scan_files(config.hidden_states.path, layers, progress=progress)
    tokenizer = open_tokenizer(config.base.spec)
    for dataset, rows in needed:
        check_rows(dataset, rows, tokenizer, files, progress=progress)
    return files


def _engine(config: CalibrateConfig, spec: ActivationSpec, files: HiddenStateFiles | None) -> BatchedBaseModel:
    """Return the base model; where vLLM has run it, an engine that reads the files."""
    if files is None:
        return load_base_model(spec, device=config.base.device)
    return BatchedBaseModel(HiddenStatesSource(HuggingFaceSource(spec, device=config.base.device), files))


def _workers(config: CalibrateConfig, engine: BatchedBaseModel) -> Workers:
    if config.run_on is None:
        return InProcess(engine)
    return RayWorkers(config.run_on, engine, device=config.base.device)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "ctd-guardrail": __version__, **packages}
