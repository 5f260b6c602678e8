from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.evaluate.grid import Grid
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.significance import holm
from calibrate.evaluate.study import measure_study
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


def test_differences_are_those_of_the_cascade_and_their_errors_are_paired(
    world: Callable[..., ScoredRows], calibration: CalibrationScores
) -> None:
    made = measure_study(Grid(world(300), calibration, delta=0.1), alpha=0.2, splits=2)
    for row in made.tables["tests"].rows:
        one, other = (
            made.tables["cascade"].where(method=method, alpha=row["alpha"])[0] for method in ("ctd", row["versus"])
        )
        assert row["difference"] == pytest.approx(one[row["figure"]] - other[row["figure"]])
        # Errors of two figures on the same rows do not add up: they share their luck.
        assert row["difference_se"] <= one[f"{row['figure']}_se"] + other[f"{row['figure']}_se"] + 1e-12
        assert row["p_holm"] >= row["p"]
