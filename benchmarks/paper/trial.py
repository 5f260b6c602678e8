"""One seed of one setting: train both probes, score the other rows, and run both protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from benchmarks.paper.delegation import fit_binary_value, fit_ridge_value
from benchmarks.paper.draws import Counts, Draw, draw_rows
from benchmarks.paper.material import Material
from benchmarks.paper.plan import PlanRecipe, Setting
from benchmarks.paper.protocols import compare_targets, own_protocol, paper_protocol
from calibrate.evaluate.budget import splits_table
from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.rows import ScoredRows
from calibrate.train import SafetyRows, TokenRows, TrainedProbes, train_probes
from calibrate.train.logistic import fit_logistic
from calibrate.train.train import layer_columns
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["SPLITS", "Outcome", "Scores", "draw", "evaluate_scores", "train_and_score"]


SPLITS: Final = 25
"""Number of random calibration splits of each seed, in which realised rates are counted."""

_COLUMNS: Final = ("p", "d", "expert", "label")


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the rows that did not train.

    Attributes:
        calibration: Rows that certify.
        test: Rows of the evaluation.
        ridge: The paper's delegation values of both parts.
        binary: The delegation value of the binary target, on the test rows; None if it was not trained,
            or the training rows have too few corrections.
    """

    calibration: ScoredRows
    test: ScoredRows
    ridge: tuple[FloatArray, FloatArray]
    binary: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of one seed.

    Attributes:
        own: Figures of this package's protocol, shape [methods, alphas, figures].
        paper: Figures of the paper's protocol in the same shape; None if it was not run.
        spearman: Rank correlation with the true v on the test rows: of d, and of the paper's ridge.
        targets: Figures of the continuous and of the binary target, shape [2, alphas, figures]; None if the binary
            target was not trained.
        splits: Over :data:`SPLITS` random calibration splits, the share in which the realised rate of CTD exceeded
            alpha, the expected share, and the mean rate, shape [3, alphas].
    """

    own: FloatArray
    paper: FloatArray | None
    spearman: tuple[float, float]
    splits: FloatArray
    targets: FloatArray | None = None


def draw(material: Material, setting: Setting, *, seed: int) -> Draw:
    """Draw the rows of one seed."""
    counts = Counts(setting.rows.train, setting.rows.calibration, setting.rows.test, safety=setting.safety.rows or 0)
    return draw_rows(material.clusters, material.file_of_row, counts, seed=seed)


def train_and_score(
    material: Material,
    expert: FloatArray,
    drawn: Draw,
    recipe: PlanRecipe,
    *,
    refit: bool,
    seed: int,
    with_binary: bool = False,
) -> Scores:
    """Train on the drawn rows and score the others.

    Args:
        material: All rows.
        expert: Expert scores, shape [n].
        drawn: Rows of each part.
        recipe: Options of the training.
        refit: Whether the training rows also train the safety probe, instead of rows of another source.
        seed: Seed of the training.
        with_binary: Whether the delegation value of the binary target is trained as well.
    """
    material = material.reading(recipe.reads or material.layers)
    rows = drawn.train
    pooled, labels, clusters = material.pooled.take(rows), material.labels[rows], material.clusters[rows]
    trained = train_probes(
        pooled,
        labels,
        expert[rows],
        clusters,
        recipe=recipe,
        seed=seed,
        safety=None if refit else _safety_rows(material, drawn),
        layers=material.layers,
        tokens=TokenRows(np.arange(rows.size), _take(material.tokens, rows)) if recipe.reads_tokens else None,
        measured=False,
    )
    parts = (drawn.calibration, drawn.test)
    scored = [_scored_rows(trained, material, expert, part) for part in parts]
    if refit:
        # In-sample scores would be better than the probe's scores on new rows.
        p = expit(fit_logistic(material.means[rows].astype(np.float64), labels, clusters, seed=seed).out_of_fold)
    else:
        p = _scored_rows(trained, material, expert, rows).p
    merged, means = trained.merge(p, expert[rows]), material.means
    ridge = fit_ridge_value(means[rows], labels, p, merged)
    binary = None
    if with_binary:
        binary = fit_binary_value(means[rows], labels, p, merged, clusters=clusters, fresh=means[drawn.test], seed=seed)
    return Scores(scored[0], scored[1], (ridge.predict(means[parts[0]]), ridge.predict(means[parts[1]])), binary)


def evaluate_scores(scores: Scores, *, delta: float, seed: int, with_paper: bool) -> Outcome:
    """Run the protocols and count realised rates."""
    calibration, test = scores.calibration, scores.test
    p, d, expert, label = (np.concatenate([getattr(part, name) for part in (calibration, test)]) for name in _COLUMNS)
    everything = ScoredRows(p, d, expert, label, merge=test.merge)
    correlations = [float(spearmanr(d, test.value).statistic) for d in (test.d, scores.ridge[1])]
    return Outcome(
        own=own_protocol(calibration, test, scores.ridge, delta=delta, seed=seed),
        paper=paper_protocol(everything, np.concatenate(scores.ridge), delta=delta, seed=seed) if with_paper else None,
        spearman=(correlations[0], correlations[1]),
        splits=_split_again(everything, calibration.label.size, delta=delta, seed=seed),
        targets=None if scores.binary is None else compare_targets(test, (scores.ridge[1], scores.binary)),
    )


def _safety_rows(material: Material, drawn: Draw) -> SafetyRows | None:
    if material.safety is not None:
        return material.safety
    rows = drawn.safety
    tokens = None if material.tokens is None else _take(material.tokens, rows)
    return SafetyRows(material.pooled.take(rows), material.labels[rows], material.clusters[rows], tokens)


def _take(tokens: list[Ragged] | None, rows: IntArray) -> list[Ragged]:
    return [] if tokens is None else [tokens[row] for row in rows.tolist()]


def _split_again(rows: ScoredRows, calibration_rows: int, *, delta: float, seed: int) -> FloatArray:
    table = splits_table(
        {"ctd": rows.d},
        rows.clusters,
        ALPHAS,
        delta=delta,
        calibration_rows=calibration_rows,
        seed=seed,
        splits=SPLITS,
    )
    records = table.where(method="ctd")
    return np.array([[record[name] for record in records] for name in ("violations", "expected", "rate")])


def _scored_rows(trained: TrainedProbes, material: Material, expert: FloatArray, rows: IntArray) -> ScoredRows:
    keep = layer_columns(trained.layers, material.layers, material.pooled.values.shape[1])
    pooled = material.pooled.take(rows).columns(keep)
    if trained.probes.spec.is_linear_in_mean:
        p, d = trained.score(pooled).T
    else:
        windows = [trained.probes(Ragged(part.values[:, keep], part.lengths)) for part in _take(material.tokens, rows)]
        p, d = pooled.over_windows(torch.cat(windows).numpy().astype(np.float64)).T
    return ScoredRows(p, d, expert[rows], material.labels[rows], merge=trained.merge)
