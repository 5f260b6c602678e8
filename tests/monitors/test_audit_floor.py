import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.audit_floor import AuditFloor
from ctd_guardrail.policy.spending import budget_beside_audit


def fed(share: float, inputs: int, audits: int, misses: int) -> AuditFloor:
    state = AuditFloor(share).state() | {"inputs": inputs, "audits": audits, "misses": misses}
    return AuditFloor.from_state(json.loads(json.dumps(state)))


def test_updates_are_counted() -> None:
    floor = AuditFloor(0.1)
    for missed in (None, True, None, False, True):
        floor.update(missed=missed)
    assert (floor.inputs, floor.audits, floor.misses) == (5, 3, 2)
    assert floor.estimate == pytest.approx(2 / (0.1 * 5))


def test_before_the_first_input_nothing_is_known() -> None:
    assert AuditFloor(0.1).estimate == 0.0
    assert AuditFloor(0.1).interval() == (0.0, 1.0)


@settings(max_examples=50)
@given(st.floats(0.01, 0.9), st.integers(1, 200), st.data())
def test_the_interval_is_what_the_bets_do_not_refute(share: float, inputs: int, data: st.DataObject) -> None:
    audits = data.draw(st.integers(0, inputs))
    misses = data.draw(st.integers(0, audits))
    floor = fed(share, inputs, audits, misses)
    kept = []
    for n in range(misses, inputs - (audits - misses) + 1):
        rises = np.mean([(1 + z) ** misses * (1 + share * z) ** -n for z in 2.0 ** np.arange(-8, 4)])
        falls = np.mean([(1 + z) ** misses * (1 + share * z) ** -n for z in -(2.0 ** np.arange(-8, 1))])
        if max(rises, falls) < 2 / 0.05:
            kept.append(n / inputs)
    if kept:
        assert floor.interval() == (kept[0], kept[-1])
    low, high = floor.interval()
    assert 0 <= low <= high <= 1


def test_finding_nothing_bounds_the_misses_from_above() -> None:
    low, high = fed(0.02, 100_000, 2_000, 0).interval()
    assert low == 0.0
    # (1 - eps)^N = delta / 2 / 9 by the boldest bet alone.
    assert high <= math.log(2 * 9 / 0.05) / -math.log1p(-0.02) / 100_000 + 1e-5


def test_certainty_is_used() -> None:
    assert fed(0.5, 4, 4, 3).interval() == (0.75, 0.75)


def test_the_interval_shrinks_as_one_over_the_root() -> None:
    widths = []
    for scale in (1, 100):
        low, high = fed(0.02, 50_000 * scale, 1_000 * scale, 50 * scale).interval()
        assert low < 0.05 < high
        widths.append(high - low)
    assert 6 < widths[0] / widths[1] < 12


def test_the_audit_is_paid_out_of_the_budget() -> None:
    rest = budget_beside_audit(0.1, 0.02)
    assert 0.02 + (1 - 0.02) * rest == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="share"):
        budget_beside_audit(0.1, 0.1)


def test_impossible_settings_and_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="share"):
        AuditFloor(0.0)
    with pytest.raises(ConfigError, match="delta"):
        AuditFloor(0.1, delta=1.0)
    with pytest.raises(DataError, match="'audits'"):
        fed(0.1, 10, 2, 3)
    with pytest.raises(DataError, match="'inputs'"):
        fed(0.1, 1, 2, 1)
