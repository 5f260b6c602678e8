"""Alarms of a deployed guard: as rare as delta while nothing is wrong, and raised where the rate is too high."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.monitor_sink import MonitorSink
from tests.support.deployment import Deployment, by_text, name_turns, serve
from tests.support.requests import requests
from tests.support.traffic import Conversations

ALPHA, DELTA = 0.1, 0.05
CALIBRATION: Final = 1_000
LAWS = {
    "four turns": Conversations(correlation=0.5),
    "four turns, alike": Conversations(correlation=0.8),
    "four turns that drift": Conversations(correlation=0.5, drift=0.1),
    "ten turns": Conversations(mean=10, longest=50, correlation=0.5),
    "ten turns, alike": Conversations(mean=10, longest=50, correlation=0.8),
}
AT_ONCE = (1, 20, 200)


def monitor(law: Conversations, rng: np.random.Generator, *, rate: float, conversations: int, at_once: int) -> set[str]:
    """Watch a stream that delegates a share of its turns, and return the alarms that are raised."""
    calibration = law.draw(rng, CALIBRATION)
    settings = MonitorSettings(ALPHA, delta=DELTA, max_turns=law.longest)
    kept = KeptMonitors(settings, calibration.scores)
    sink = MonitorSink(kept)
    for event in requests(law.draw(rng, conversations), law.threshold(rate), at_once, rng):
        sink(event)
    assert kept.monitors.rates.conversations > 0.99 * conversations
    return {name for name, raised in kept.monitors.alarms().items() if raised is not None}


@pytest.mark.parametrize("name", LAWS)
def test_false_alarms_are_as_rare_as_delta(name: str, draws: int) -> None:
    rng = np.random.default_rng([15, *name.encode()])
    streams = [
        monitor(LAWS[name], rng, rate=ALPHA, conversations=250, at_once=at_once)
        for at_once in AT_ONCE
        for _ in range(-(-draws // len(AT_ONCE)))
    ]
    for alarm in ("rate", "score_drift", "score_exceedance"):
        raised = sum(alarm in stream for stream in streams)
        print(f"{name}: {alarm} in {raised / len(streams):.3f} of {len(streams)} streams")  # noqa: T201
        assert raised <= binom.ppf(1 - 1e-4, len(streams), DELTA)


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_a_rate_of_one_and_a_half_alpha_is_found(at_once: int, draws: int) -> None:
    rng = np.random.default_rng(at_once)
    streams = max(5, draws // 20)
    found = [
        monitor(LAWS["four turns"], rng, rate=1.5 * ALPHA, conversations=2_000, at_once=at_once) for _ in range(streams)
    ]
    assert np.mean(["rate" in stream for stream in found]) >= 0.8


async def test_forged_histories_reach_neither_the_alarms_nor_the_recent_scores() -> None:
    """They show late turns only, which score higher than the turns of whole conversations."""
    law = LAWS["four turns that drift"]
    rng = np.random.default_rng(3)
    calibration, turns = law.draw(rng, CALIBRATION), law.draw(rng, 50)
    texts = name_turns(turns)
    forged = [f"forged {number}" for number in range(40)]
    kept = KeptMonitors(
        MonitorSettings(ALPHA, delta=DELTA, max_turns=law.longest),
        calibration.scores,
    )
    scores = by_text(texts, turns.d) | dict.fromkeys([*forged, *(f"{text}, earlier" for text in forged)], 5.0)
    deployment = Deployment(law.threshold(ALPHA), scores, emit=MonitorSink(kept), max_expert_calls=2)
    await serve(deployment, texts, turns.conversation, range(turns.d.size))
    before = kept.monitors.rates.calls
    for text in forged:
        answered = [{"role": "user", "content": f"{text}, earlier"}, {"role": "assistant", "content": "Yes."}]
        await deployment.send([*answered, {"role": "user", "content": text}])
    deployment.close()
    assert kept.monitors.conversations.left_out == 40
    assert kept.monitors.rates.calls - before == 80, "they cost calls, and the rates say so"
    assert len(kept.monitors.conversations) <= 50
    assert kept.monitors.alarms()["rate"] is None
    assert "5.0" not in kept.monitors.recent.csv()
