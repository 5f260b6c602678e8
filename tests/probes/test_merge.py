from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ctd_guardrail.probes.merge import Merge

shares = st.floats(0.0, 1.0)


@given(shares, shares)
def test_what_is_not_said_is_the_experts_score(p: float, e: float) -> None:
    assert float(Merge()(p, e)) == e


@given(shares, shares, shares)
def test_an_average_lies_between_the_two(p: float, e: float, weight: float) -> None:
    merged = float(Merge(kind="average", weight=weight)(p, e))
    assert merged == pytest.approx((1 - weight) * p + weight * e)


def test_stacking_is_logistic_in_both_log_odds() -> None:
    merge = Merge(kind="stacking", intercept=0.5, probe=0.25, expert=2.0)
    logit = 0.5 + 0.25 * np.log(0.2 / 0.8) + 2.0 * np.log(0.7 / 0.3)
    assert float(merge(0.2, 0.7)) == pytest.approx(1 / (1 + np.exp(-logit)))


def test_scaling_comes_before_the_merge() -> None:
    scaled = Merge(expert_scale=(2.0, -1.0))
    logit = 2.0 * np.log(0.7 / 0.3) - 1.0
    expected = 1 / (1 + np.exp(-logit))
    assert float(scaled(0.2, 0.7)) == pytest.approx(expected)
    average = Merge(kind="average", weight=0.25, expert_scale=(2.0, -1.0))
    assert float(average(0.2, 0.7)) == pytest.approx(0.75 * 0.2 + 0.25 * expected)


@given(st.sampled_from(["replace", "average", "stacking"]), shares, shares, st.floats(-5, 5), st.floats(-5, 5))
def test_the_result_is_a_probability_for_any_scores(kind: Any, p: float, e: float, a: float, b: float) -> None:
    merged = Merge(kind=kind, intercept=b, probe=a, expert=b, expert_scale=(a, b))(p, e)
    assert 0.0 <= float(merged) <= 1.0


def test_arrays_are_merged_row_by_row() -> None:
    merge = Merge(kind="stacking", intercept=0.1)
    p, e = np.array([0.0, 0.3, 1.0]), np.array([1.0, 0.6, 1.0])
    assert merge(p, e).tolist() == [float(merge(a, b)) for a, b in zip(p, e, strict=True)]


@pytest.mark.parametrize(
    "fields", [{"kind": "product"}, {"weight": 1.5}, {"probe": float("nan")}, {"expert_scale": [1.0]}, {"surplus": 1}]
)
def test_odd_merges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Merge.model_validate(fields)
