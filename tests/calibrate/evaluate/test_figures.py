"""Figures and their influences, against scikit-learn, by hand, and against the bootstrap."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, recall_score, roc_auc_score

from calibrate.evaluate.figures import FIGURES, Figure, cluster_error, divide, integrate, mean_of, measure
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail.errors import DataError

World = Callable[..., ScoredRows]
ALL = (*FIGURES, "false_alarms")


def _measure(label: np.ndarray, score: np.ndarray, tau: float = 0.5) -> dict[str, Figure]:
    return measure(label, score, np.arange(label.size), tau=tau)


def test_figures_of_four_rows_by_hand() -> None:
    figures = _measure(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 0.4, 0.4, 0.1]))
    assert figures["auroc"].value == (1 + 1 + 1 + 0.5) / 4
    assert figures["accuracy"].value == 0.75
    assert figures["brier"].value == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert figures["missed_harm"].value == 0.5
    assert figures["false_alarms"].value == 0.0


def test_a_score_of_exactly_tau_blocks() -> None:
    label = np.array([1.0, 0.0])
    assert _measure(label, np.array([0.3, 0.2]), tau=0.3)["accuracy"].value == 1.0
    assert _measure(label, np.array([0.3, 0.3]), tau=0.3)["accuracy"].value == 0.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_figures_are_those_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    label = np.array([float(unsafe) for unsafe, _ in rows])
    score = np.array([value / 5 for _, value in rows])
    if 0 < label.sum() < label.size:
        blocked = score >= 0.5
        wanted = {
            "auroc": roc_auc_score(label, score),
            "accuracy": accuracy_score(label, blocked),
            "brier": brier_score_loss(label, score),
            "missed_harm": 1 - recall_score(label, blocked),
            "false_alarms": 1 - recall_score(label, blocked, pos_label=0),
        }
        figures = _measure(label, score)
        assert {name: figure.value for name, figure in figures.items()} == pytest.approx(wanted)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_label_have_no_auroc(label: float) -> None:
    with pytest.raises(DataError, match="rows of both labels"):
        _measure(np.full(3, label), np.zeros(3))


def test_influences_have_mean_zero_and_predict_the_effect_of_leaving_a_row_out(world: World) -> None:
    rows = world(200)
    figures = _measure(rows.label, rows.p)
    for name in ALL:
        assert figures[name].influence.mean() == pytest.approx(0.0, abs=1e-12)
        for row in range(0, 200, 17):
            kept = np.arange(200) != row
            moved = _measure(rows.label[kept], rows.p[kept])[name].value - figures[name].value
            # To first order; the rest is of the order of 1 / n^2.
            assert moved == pytest.approx(-figures[name].influence[row] / 199, abs=4e-4 / 2)


def test_ties_count_half_in_the_influences_of_auroc() -> None:
    auroc = _measure(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 0.4, 0.4, 0.1]))["auroc"]
    placement = np.array([1.0, 0.75, 0.75, 1.0])
    assert auroc.influence.tolist() == pytest.approx(((placement - auroc.value) / 0.5).tolist())


def test_errors_agree_with_the_bootstrap_over_clusters(world: World) -> None:
    rows = world(600)
    figures = measure(rows.label, rows.p, rows.clusters, tau=0.5)
    members = [np.flatnonzero(rows.clusters == number) for number in np.unique(rows.clusters)]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        again = _measure(rows.label[drawn], rows.p[drawn])
        draws.append([again[name].value for name in ALL])
    for name, spread in zip(ALL, np.std(draws, axis=0, ddof=1), strict=True):
        # A standard deviation from 400 draws has an error of 3.5%.
        assert figures[name].error == pytest.approx(spread, rel=0.12)


def test_the_error_of_a_mean_is_the_textbook_one_for_independent_rows() -> None:
    values = np.random.default_rng(0).normal(size=50)
    mean = mean_of(values, np.arange(50))
    assert mean.value == values.mean()
    assert mean.error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_a_mean_over_some_rows_is_a_figure_of_all_rows() -> None:
    values, chosen = np.random.default_rng(0).normal(size=500), np.arange(500) % 3 > 0
    some = mean_of(values, np.arange(500), chosen=chosen)
    assert some.value == values[chosen].mean()
    assert (some.influence[~chosen] == 0).all()
    assert some.error == pytest.approx(values[chosen].std() / np.sqrt(chosen.sum()), rel=0.01)


def test_copies_of_rows_add_no_confidence() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once, thrice = mean_of(values, np.arange(50)), mean_of(np.repeat(values, 3), np.repeat(np.arange(50), 3))
    assert thrice.error == pytest.approx(once.error)


def test_one_cluster_has_no_error() -> None:
    assert np.isnan(cluster_error(np.array([1.0, -1.0]), np.array([7, 7])))


def test_areas_and_ratios_carry_their_influences() -> None:
    rng = np.random.default_rng(1)
    one, other = (mean_of(rng.normal(3, 1, 400), np.arange(400)) for _ in range(2))
    area = integrate([one - one, one, other], [0.0, 0.4, 1.0])
    assert area.value == pytest.approx(0.4 * one.value / 2 + 0.6 * (one.value + other.value) / 2)
    assert area.influence == pytest.approx(0.5 * one.influence + 0.3 * other.influence)
    ratio = divide(one, other)
    assert ratio.value == one.value / other.value
    # The delta method for independent means.
    wanted = ratio.value * np.hypot(one.error / one.value, other.error / other.value)
    assert ratio.error == pytest.approx(wanted, rel=0.1)
    nothing = divide(one, other - other)
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.error)
