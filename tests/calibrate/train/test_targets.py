import numpy as np
import pytest

from calibrate.train.targets import delegation_targets, label_target
from ctd_guardrail.errors import DataError
from ctd_guardrail.probes.spec import DelegationCosts

LABELS = np.array([1.0, 1.0, 0.0, 0.0])
P = np.array([0.2, 0.9, 0.3, 0.7])
EXPERT = np.array([0.8, 0.6, 0.6, 0.1])
EVEN = DelegationCosts()


def test_the_plug_in_learns_the_experts_score_on_the_rows_of_each_label() -> None:
    targets = delegation_targets("plug_in", LABELS, P, EXPERT, EVEN)
    assert list(targets) == ["e1", "e0"]
    assert targets["e1"].rows.tolist() == [0, 1]
    assert targets["e0"].rows.tolist() == [2, 3]
    assert all(target.loss == "squared" for target in targets.values())
    np.testing.assert_array_equal(targets["e0"].values, EXPERT)


def test_direct_regression_learns_the_value_that_the_expert_adds_weighed_by_costs() -> None:
    direct = delegation_targets("direct", LABELS, P, EXPERT, EVEN)["value"]
    np.testing.assert_allclose(direct.values, [0.6, -0.3, -0.3, 0.6])
    weighed = delegation_targets("direct", LABELS, P, EXPERT, DelegationCosts(missed=4.0, false_alarm=1.0))["value"]
    np.testing.assert_allclose(weighed.values, [0.6, -0.3, -0.075, 0.15])


def test_the_binary_target_is_that_the_expert_corrects_the_probe() -> None:
    many = [np.tile(column, 10) for column in (LABELS, P, EXPERT)]
    target = delegation_targets("binary", *many, DelegationCosts(missed=1.0, false_alarm=2.0))["value"]
    assert target.loss == "logistic"
    # Row 2: the expert is wrong and the probe right. That shows as 0, the same as no difference.
    np.testing.assert_array_equal(target.values[:4], [1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(target.weights[:4], [0.5, 0.5, 1.0, 1.0])


def test_binary_needs_rows_that_the_expert_corrects() -> None:
    with pytest.raises(DataError, match="corrects the probe on 2 of 4 training rows"):
        delegation_targets("binary", LABELS, P, EXPERT, EVEN)


def test_a_target_can_be_cut_down_to_rows() -> None:
    part = label_target(LABELS).take(np.array([3, 0]))
    np.testing.assert_array_equal(part.values, [0.0, 1.0])
    assert part.rows.tolist() == [0, 1]
