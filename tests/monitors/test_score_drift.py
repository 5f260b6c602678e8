import json

import numpy as np
import pytest

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.score_drift import ScoreDriftAlarm


def test_each_part_gets_half_of_delta() -> None:
    alarm = ScoreDriftAlarm(np.arange(100.0), delta=0.04, seed=0)
    assert alarm.conformal.delta == alarm.exceedance.delta == 0.02


def test_the_first_part_to_be_raised_raises_it() -> None:
    rng = np.random.default_rng(1)
    alarm = ScoreDriftAlarm(rng.standard_normal(1000), seed=0)
    assert alarm.alarmed_at is None
    raised = [alarm.update(d) for d in (rng.standard_normal(600) + 1.0).tolist()]
    assert alarm.alarmed_at == raised.index(True) + 1
    assert alarm.alarmed_at == min(alarm.conformal.alarmed_at or 601, alarm.exceedance.alarmed_at or 601)
    assert alarm.exceedance.alarmed_at != alarm.conformal.alarmed_at, "the later one must have been fed as well"


def test_both_parts_find_a_change_that_comes_slowly() -> None:
    rng = np.random.default_rng(2)
    alarm = ScoreDriftAlarm(rng.standard_normal(1000), seed=0)
    for d in (np.linspace(0.0, 1.0, 8000) + rng.standard_normal(8000)).tolist():
        alarm.update(d)
    assert alarm.conformal.alarmed_at is not None
    assert alarm.exceedance.alarmed_at is not None


def test_after_a_restart_it_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(3)
    calibration, stream = rng.standard_normal(300), (rng.standard_normal(400) + 0.3).tolist()
    whole, first = ScoreDriftAlarm(calibration, seed=4), ScoreDriftAlarm(calibration, seed=4)
    for d in stream[:20]:
        assert first.update(d) == whole.update(d)
    second = ScoreDriftAlarm.from_state(json.loads(json.dumps(first.state())), calibration)
    assert [second.update(d) for d in stream[20:]] == [whole.update(d) for d in stream[20:]]
    assert second.state() == whole.state()


def test_a_state_of_another_monitor_is_refused() -> None:
    scores = np.arange(50.0)
    alarm = ScoreDriftAlarm(scores, seed=0)
    with pytest.raises(DataError, match="score drift alarm"):
        ScoreDriftAlarm.from_state(alarm.conformal.state(), scores)
