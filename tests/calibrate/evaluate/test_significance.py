from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from calibrate.evaluate import ScoredRows, study
from calibrate.evaluate.significance import combine_tests, holm
from ctd_guardrail.policy.store import CalibrationScores


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_stepping_down_rejects(p: list[float], level: float) -> None:
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert {i for i, value in enumerate(holm(np.array(p))) if value <= level} == rejected


def test_the_difference_of_a_method_from_itself_is_nothing(
    world: Callable[..., ScoredRows], calibration: CalibrationScores
) -> None:
    made = study(world(300), calibration, alpha=0.2, delta=0.1, splits=2)
    for row in made.tables["tests"].rows:
        one, other = (
            made.tables["cascade"].where(method=method, alpha=row["alpha"])[0] for method in ("ctd", row["versus"])
        )
        assert row["difference"] == pytest.approx(one[row["figure"]] - other[row["figure"]])
        # Errors of two figures on the same rows do not add up: they share their luck.
        assert row["difference_se"] <= one[f"{row['figure']}_se"] + other[f"{row['figure']}_se"] + 1e-12
        assert row["p_holm"] >= row["p"]


def test_over_evaluations_it_is_the_paired_t_test(
    world: Callable[..., ScoredRows], calibration: CalibrationScores
) -> None:
    made = [study(world(200, seed), calibration, alpha=0.2, delta=0.1, splits=2) for seed in range(4)]
    combined = combine_tests([one.tables["tests"] for one in made])
    (row,) = combined.where(figure="auroc", versus="uncertainty", alpha=0.3)
    one, other = (
        [m.tables["cascade"].where(method=method, alpha=0.3)[0]["auroc"] for m in made]
        for method in ("ctd", "uncertainty")
    )
    assert row["p"] == pytest.approx(ttest_rel(one, other).pvalue)
    assert row["difference"] == pytest.approx(np.mean(one) - np.mean(other))
