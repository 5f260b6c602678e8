from __future__ import annotations

import math

import pytest

from calibrate.risk.testing import fixed_sequence
from ctd_guardrail.errors import DataError


def test_a_fixed_sequence_stops_at_the_first_failure() -> None:
    p = [0.01, 0.04, 0.02, 0.30, 0.012]
    assert fixed_sequence(p, 0.05).tolist() == [True, True, True, False, False]
    assert fixed_sequence(p, 0.05, order=[4, 2, 3, 0, 1]).tolist() == [False, False, True, False, True]
    assert fixed_sequence(p, 0.05, order=[3, 0, 1, 2, 4]).tolist() == [False] * 5


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_what_is_no_p_value_is_refused_with_its_row(bad: float) -> None:
    with pytest.raises(DataError) as refusal:
        fixed_sequence([0.01, bad], 0.05)
    assert refusal.value.row == 2


def test_an_order_that_names_a_hypothesis_twice_is_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        fixed_sequence([0.01, 0.02], 0.05, order=[0, 0])
