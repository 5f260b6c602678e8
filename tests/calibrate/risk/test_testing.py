from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrate.risk.testing import bonferroni, fixed_sequence, holm, sequential_graphical
from ctd_guardrail.errors import DataError

P_VALUES = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 0.2))


def test_each_procedure_on_a_worked_example() -> None:
    p = [0.01, 0.04, 0.02, 0.30, 0.012]
    assert bonferroni(p, 0.05).tolist() == [True, False, False, False, False]
    assert holm(p, 0.05).tolist() == [True, False, False, False, True]
    assert fixed_sequence(p, 0.05).tolist() == [True, True, True, False, False]
    assert fixed_sequence(p, 0.05, order=[3, 0, 1, 2, 4]).tolist() == [False] * 5


@settings(deadline=None)
@given(P_VALUES)
def test_holm_rejects_what_bonferroni_rejects(p: np.ndarray) -> None:
    assert (holm(p, 0.05) | ~bonferroni(p, 0.05)).all()


@settings(deadline=None)
@given(P_VALUES)
def test_holm_is_the_complete_graph(p: np.ndarray) -> None:
    m = p.size
    graph = (np.ones((m, m)) - np.eye(m)) / max(1, m - 1)
    # Clear of ties with a level, where the graph's quotients may round the other way.
    p = p + 1e-9
    assert (sequential_graphical(p, 0.05, weights=np.full(m, 1 / m), transitions=graph) == holm(p, 0.05)).all()


@settings(deadline=None)
@given(P_VALUES)
def test_a_fixed_sequence_is_the_chain(p: np.ndarray) -> None:
    m = p.size
    weights = np.eye(m)[0]
    assert (sequential_graphical(p, 0.05, weights=weights, transitions=np.eye(m, k=1)) == fixed_sequence(p, 0.05)).all()


def test_a_graph_without_arrows_is_weighted_bonferroni() -> None:
    rejected = sequential_graphical([0.03, 0.03], 0.05, weights=[0.7, 0.3], transitions=np.zeros((2, 2)))
    assert rejected.tolist() == [True, False]


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_what_is_no_p_value_is_refused_with_its_row(bad: float) -> None:
    for procedure in (bonferroni, holm, fixed_sequence):
        with pytest.raises(DataError) as refusal:
            procedure([0.01, bad], 0.05)
        assert refusal.value.row == 2


@pytest.mark.parametrize(
    ("weights", "transitions"),
    [
        ([0.5, 0.6], np.zeros((2, 2))),
        ([-0.1, 0.5], np.zeros((2, 2))),
        ([0.5], np.zeros((2, 2))),
        ([0.5, 0.5], np.eye(2)),
        ([0.5, 0.5], np.array([[0, 1.5], [0, 0]])),
        ([0.5, 0.5], np.array([[0, -0.5], [0, 0]])),
    ],
)
def test_what_is_no_graph_is_refused(weights: list[float], transitions: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"graph"):
        sequential_graphical([0.01, 0.02], 0.05, weights=weights, transitions=transitions)


def test_an_order_that_names_a_hypothesis_twice_is_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        fixed_sequence([0.01, 0.02], 0.05, order=[0, 0])
