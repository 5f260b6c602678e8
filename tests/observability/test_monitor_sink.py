"""The sink of the monitors."""

import logging

import numpy as np
import pytest

from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.events import Arrived, Origin, Served
from ctd_guardrail.observability.monitor_sink import MonitorSink
from ctd_guardrail.policy.turns import TurnScores


def serve(sink: MonitorSink, earlier: int, *, is_placed: bool = True, origin: Origin = Origin.CONFIGURED) -> None:
    digest = str(earlier)
    sink(Arrived("name", digest, 0.0, origin))
    sink(Served("name", digest, (0.1,), 0, is_placed, 0.0, origin, earlier))


@pytest.mark.parametrize("max_turns", [1, 3])
def test_a_conversation_longer_than_any_of_the_calibration_is_logged_once(
    max_turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = MonitorSettings(alpha=0.5, max_turns=max_turns)
    sink = MonitorSink(KeptMonitors(settings, TurnScores.of(np.linspace(-1.0, 1.0, 50))))
    with caplog.at_level(logging.WARNING, logger="ctd_guardrail.observability.monitor_sink"):
        for earlier in range(max_turns):
            serve(sink, earlier)
        serve(sink, max_turns, is_placed=False)  # a client may have invented it
        serve(sink, max_turns, origin=Origin.SELF_TEST)
        assert not caplog.records
        for earlier in (max_turns, max_turns + 1):
            serve(sink, earlier)
    (record,) = caplog.records
    assert f"({max_turns})" in record.getMessage()
