from collections.abc import Callable

import numpy as np
import pytest

from calibrate.evaluate import ScoredRows
from calibrate.evaluate.influence import FIGURES, cluster_error, mean_error, measure_with_influence
from calibrate.evaluate.metrics import measure


def test_influences_have_mean_zero_and_say_what_leaving_a_row_out_does(world: Callable[..., ScoredRows]) -> None:
    rows = world(200)
    metrics, influences = measure_with_influence(rows.label, rows.p, tau=0.5)
    for figure in FIGURES:
        assert influences[figure].mean() == pytest.approx(0.0, abs=1e-12)
        for row in range(0, 200, 17):
            kept = np.arange(200) != row
            moved = getattr(measure(rows.label[kept], rows.p[kept]), figure) - getattr(metrics, figure)
            # To first order; the rest is of the order of 1 / n^2.
            assert moved == pytest.approx(-influences[figure][row] / 199, abs=4e-4 / 2)


def test_ties_count_half_in_the_influences_of_auroc() -> None:
    label = np.array([1.0, 1.0, 0.0, 0.0])
    score = np.array([0.9, 0.4, 0.4, 0.1])
    metrics, influences = measure_with_influence(label, score, tau=0.5)
    placement = np.array([1.0, 0.75, 0.75, 1.0])
    assert influences["auroc"].tolist() == pytest.approx(((placement - metrics.auroc) / 0.5).tolist())


def test_errors_agree_with_the_bootstrap_over_clusters(world: Callable[..., ScoredRows]) -> None:
    rows = world(600)
    _, influences = measure_with_influence(rows.label, rows.p, tau=0.5)
    members = [np.flatnonzero(rows.clusters == number) for number in np.unique(rows.clusters)]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        metrics = measure(rows.label[drawn], rows.p[drawn])
        draws.append([getattr(metrics, figure) for figure in FIGURES])
    for figure, spread in zip(FIGURES, np.std(draws, axis=0, ddof=1), strict=True):
        # A standard deviation from 400 draws has an error of 3.5%.
        assert cluster_error(influences[figure], rows.clusters) == pytest.approx(spread, rel=0.12)


def test_the_error_of_a_mean_is_the_textbook_one_for_rows_on_their_own() -> None:
    values = np.random.default_rng(0).normal(size=50)
    chosen = np.arange(50) % 3 > 0
    mean, error = mean_error(values, chosen, np.arange(50))
    assert mean == values[chosen].mean()
    assert error == pytest.approx(values[chosen].std(ddof=1) / np.sqrt(chosen.sum()))


def test_copies_of_rows_add_no_confidence() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = mean_error(values, np.ones(50, bool), np.arange(50))[1]
    thrice = mean_error(np.repeat(values, 3), np.ones(150, bool), np.repeat(np.arange(50), 3))[1]
    assert thrice == pytest.approx(once)


def test_nothing_has_no_mean_and_one_cluster_no_error() -> None:
    assert all(np.isnan(mean_error(np.zeros(3), np.zeros(3, bool), np.arange(3))))
    assert np.isnan(cluster_error(np.array([1.0, -1.0]), np.array([7, 7])))
