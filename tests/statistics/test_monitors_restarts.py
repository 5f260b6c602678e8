"""Crashes between saves leave the false-alarm probability as it is: the log repeats what was taken."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.policy.turns import TurnScores

ALPHA, DELTA = 0.3, 0.05
SETTINGS = MonitorSettings(ALPHA, delta=DELTA, keep_scores=20)
REQUESTS, EVERY = 300, 20


@pytest.fixture(autouse=True)
def _no_power_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves what it has written; waiting for the disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def alarms(folder: Path, rng: np.random.Generator, *, is_logged: bool, is_hostile: bool) -> set[str]:
    """Run a stream at the budget through monitors that crash now and then, and return the alarms.

    Args:
        folder: The folder of the state.
        rng: Draws scores and crashes.
        is_logged: Whether the log is there after a crash.
        is_hostile: Whether crashes come whenever the evidence has fallen since the last save; else at random.
    """
    calibration = TurnScores(np.sort(rng.normal(size=100)))
    kept = KeptMonitors(SETTINGS, calibration, folder=folder)
    evidence = 1.0
    for number, d in enumerate(rng.normal(size=REQUESTS).tolist()):
        kept.update(Request("name", "digest", (d,), int(rng.random() < ALPHA), is_placed=True, at=float(number)))
        if number % EVERY < EVERY - 1:
            continue
        now = kept.monitors.rate.evidence
        if now < evidence if is_hostile else rng.random() < 0.5:
            if not is_logged:
                for log in folder.glob("*.wal"):
                    log.unlink()
            del kept  # as a kill would: nothing is saved
            kept = KeptMonitors(SETTINGS, calibration, folder=folder)
        else:
            kept.save()
        evidence = kept.monitors.rate.evidence
    return {name for name, raised in kept.monitors.alarms().items() if raised is not None}


@pytest.mark.parametrize("is_hostile", [False, True])
def test_false_alarms_within_delta_with_crashes_at_random_and_at_the_worst_times(
    tmp_path: Path, draws: int, *, is_hostile: bool
) -> None:
    draws = -(-draws // 2)
    runs = [
        alarms(tmp_path / str(draw), np.random.default_rng(draw), is_logged=True, is_hostile=is_hostile)
        for draw in range(draws)
    ]
    for alarm in ("rate", "score_drift", "score_exceedance"):
        raised = sum(alarm in run for run in runs)
        print(f"crashes, hostile {is_hostile}: {alarm} in {raised / draws:.3f} of {draws} streams")  # noqa: T201
        assert raised <= binom.ppf(1 - 1e-4, draws, DELTA)


def test_without_the_log_crashes_at_the_worst_times_raise_alarms(tmp_path: Path) -> None:
    """They take back every loss of the bets, and draw again."""
    runs = [
        alarms(tmp_path / str(draw), np.random.default_rng(draw), is_logged=False, is_hostile=True)
        for draw in range(30)
    ]
    raised = sum("rate" in run for run in runs)
    print(f"crashes without the log: rate in {raised / 30:.2f} of 30 streams")  # noqa: T201
    assert raised > binom.ppf(1 - 1e-4, 30, DELTA)
