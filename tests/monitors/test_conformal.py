import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import kolmogorov

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.conformal import MAX_REFERENCE, ConformalPValues


def p_values(calibration: np.ndarray, stream: np.ndarray, seed: int = 0) -> np.ndarray:
    ranks = ConformalPValues(calibration, seed=seed)
    return np.array([ranks.update(d) for d in stream.tolist()])


def test_a_p_value_is_drawn_from_the_ranks_that_ties_leave_open() -> None:
    # 3 of 5 scores lie above 0.2, one is equal to it.
    draws = [ConformalPValues(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), seed=s).update(0.2) for s in range(200)]
    assert 3 / 6 <= min(draws) < 3.1 / 6
    assert 4.9 / 6 < max(draws) < 5 / 6


def test_stream_scores_count_for_those_that_follow() -> None:
    ranks = ConformalPValues(np.array([0.0]), seed=0)
    for _ in range(9):
        ranks.update(1.0)
    # Nine of ten scores lie above 0.5's gap or in it: the gap above 0 holds them all.
    assert ranks.update(0.5) < 10 / 11
    assert ranks.update(-1.0) >= 11 / 12


@pytest.mark.parametrize("values", [2, 4])
def test_with_discrete_scores_the_first_three_p_values_are_jointly_uniform(values: int) -> None:
    """Over every data set of two calibration and three stream scores, each cell of a 3 x 3 x 3 grid is as likely.

    Given the data each p-value is uniform on an interval of its own, so a cell has the product of three overlaps.
    """
    grid = 3
    total = np.zeros((grid,) * 3)
    for data in product(range(values), repeat=5):
        ranks = ConformalPValues(np.array(data[:2], dtype=float), seed=0)
        shares = []
        for d in data[2:]:
            low, high = interval(ranks, float(d))
            edges = np.clip(np.arange(grid + 1) / grid, low, high)
            shares.append(np.diff(edges) / (high - low))
        total += np.einsum("i,j,k->ijk", *shares)
    assert np.allclose(total / values**5, grid**-3, atol=1e-12)


def interval(ranks: ConformalPValues, d: float) -> tuple[float, float]:
    """Update with d and return the interval that its p-value is uniform on."""
    draws = iter([0.0])
    ranks._uniform = lambda: next(draws)
    before = ranks._cell_counts.copy()
    total = ranks._total
    low = ranks.update(d)
    same = before[(ranks._cell_counts - before).argmax()]
    return low, low + (same + 1) / (total + 1)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_under_exchangeability_they_are_uniform_and_independent_with_and_without_ties(decimals: int | None) -> None:
    rng = np.random.default_rng(4)
    p = []
    for seed in range(60):
        scores = rng.standard_normal(350)
        if decimals is not None:
            scores = np.round(scores, decimals)
        p.append(p_values(scores[:50], scores[50:], seed))
    p = np.array(p)
    grid = np.sort(p.ravel())
    distance = np.abs(grid - (np.arange(grid.size) + 0.5) / grid.size).max()
    assert kolmogorov(distance * np.sqrt(grid.size)) > 1e-3
    for lag in (1, 7):
        correlation = np.corrcoef(p[:, :-lag].ravel(), p[:, lag:].ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(p.size)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.lists(st.integers(-6, 6), max_size=20),
)
def test_only_the_order_of_the_scores_matters(calibration: list[int], stream: list[int]) -> None:
    a, b = np.array(calibration, dtype=float), np.array(stream, dtype=float)
    expected = p_values(a, b)
    assert np.array_equal(p_values(a[::-1], b), expected)
    assert np.array_equal(p_values(np.exp(a / 3), np.exp(b / 3)), expected)


def test_memory_does_not_grow() -> None:
    rng = np.random.default_rng(5)
    ranks = ConformalPValues(rng.standard_normal(100), seed=0)
    cells = ranks._cell_counts.size
    for d in rng.standard_normal(2000).tolist():
        ranks.update(d)
    assert ranks._cell_counts.size == cells == 201
    assert ranks._cell_counts.sum() == 2100


def test_a_large_calibration_set_is_thinned_at_random() -> None:
    scores = np.random.default_rng(6).permutation(5 * MAX_REFERENCE).astype(float)
    cuts = np.array(ConformalPValues(scores, seed=0)._cuts)
    assert cuts.size == MAX_REFERENCE
    assert all(a < b for a, b in pairwise(cuts))
    assert abs(cuts.mean() / scores.mean() - 1) < 0.05
    assert not np.array_equal(cuts, ConformalPValues(scores, seed=1)._cuts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="row 2"):
        ConformalPValues(np.array([0.0, bad]), seed=0)
    with pytest.raises(DataError, match="finite"):
        ConformalPValues(np.array([0.0]), seed=0).update(bad)


def test_after_a_restart_the_same_numbers_follow() -> None:
    rng = np.random.default_rng(7)
    calibration, stream = rng.standard_normal(3000), rng.standard_normal(300).tolist()
    whole, first = ConformalPValues(calibration, seed=9), ConformalPValues(calibration, seed=9)
    for d in stream[:150]:
        assert first.update(d) == whole.update(d)
    second = ConformalPValues.from_state(json.loads(json.dumps(first.state())), calibration)
    assert [second.update(d) for d in stream[150:]] == [whole.update(d) for d in stream[150:]]


def test_a_state_saved_beside_other_scores_is_refused() -> None:
    state = ConformalPValues(np.arange(10.0), seed=0).state()
    with pytest.raises(DataError, match="other calibration scores"):
        ConformalPValues.from_state(state, np.arange(10.0) / 2)
