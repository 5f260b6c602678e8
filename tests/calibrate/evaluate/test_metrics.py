import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from calibrate.evaluate.metrics import auroc, measure
from ctd_guardrail.errors import DataError


def test_figures_of_four_rows_by_hand() -> None:
    label = np.array([1.0, 1.0, 0.0, 0.0])
    score = np.array([0.9, 0.4, 0.4, 0.1])
    metrics = measure(label, score)
    assert metrics.auroc == (1 + 1 + 1 + 0.5) / 4
    assert metrics.accuracy == 0.75
    assert metrics.brier == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert metrics.missed_harm == 0.5


def test_a_score_of_exactly_tau_blocks() -> None:
    label = np.array([1.0, 0.0])
    assert measure(label, np.array([0.3, 0.2]), tau=0.3).accuracy == 1.0
    assert measure(label, np.array([0.3, 0.3]), tau=0.3).accuracy == 0.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auroc_counts_ties_half_as_sklearn_does(rows: list[tuple[bool, int]]) -> None:
    label = np.array([float(unsafe) for unsafe, _ in rows])
    score = np.array([value / 5 for _, value in rows])
    if 0 < label.sum() < label.size:
        assert auroc(label, score) == pytest.approx(roc_auc_score(label, score))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_label_have_no_auroc(label: float) -> None:
    with pytest.raises(DataError, match="rows of both labels"):
        measure(np.full(3, label), np.zeros(3))
