import gc
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.monitors.conversations import Request
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import Monitors, MonitorSettings
from ctd_guardrail.monitors.write_ahead import WriteAheadLog
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from tests.support.clocks import ManualClock

SCORES = TurnScores(np.linspace(-1.0, 1.0, 400))
SETTINGS = MonitorSettings(alpha=0.2, audit_share=0.05, keep_scores=100, max_turns=3)


def kept(
    folder: Path | None, settings: MonitorSettings = SETTINGS, scores: Any = SCORES, **options: Any
) -> KeptMonitors:
    return KeptMonitors(settings, scores, folder=folder, **options)


def updates(number: int, seed: int = 0) -> Iterator[Callable[[Any], None]]:
    """Return what a stream of requests calls on the monitors: conversations of three turns, and audits."""
    rng = np.random.default_rng(seed)
    for turn in range(number):
        audited = rng.random() < 0.05
        calls = int(audited or rng.random() < 0.1)
        name = f"{seed}.{turn // 3}"
        scores = (math.inf if rng.random() < 0.02 else float(rng.uniform(-1, 1)),)
        request = Request(name, f"{name}.{turn % 3}", scores, calls, is_placed=True, at=float(turn), earlier=turn % 3)
        yield methodcaller("update", request)
        yield methodcaller("audited", missed=False) if audited else methodcaller("unaudited")


def feed(monitors: KeptMonitors | Monitors, number: int, seed: int = 0) -> None:
    for update in updates(number, seed):
        update(monitors)


def single(d: float, *, calls: int = 0, is_configured: bool = True) -> Request:
    return Request("name", "digest", (d,), calls, is_placed=True, at=0.0, is_configured=is_configured)


def test_one_request_reaches_every_monitor() -> None:
    monitors = Monitors(MonitorSettings(alpha=0.2, audit_share=0.05), SCORES)
    monitors.update(single(0.5, calls=1))
    monitors.audited(missed=True)
    monitors.update(single(0.25))
    monitors.unaudited()
    monitors.update(single(0.0, is_configured=False))
    assert (monitors.rates.requests, monitors.rates.calls) == (2, 1)
    assert monitors.rate.steps == 2
    assert monitors.drift.conformal.steps == monitors.drift.exceedance.steps == 3
    assert monitors.audit is not None
    assert (monitors.audit.inputs, monitors.audit.audits, monitors.audit.misses) == (2, 1, 1)
    assert monitors.recent.csv() == "dv,conversation\n0.5,name\n0.25,name\n0.0,name\n"


def test_a_budget_per_conversation_counts_each_conversation_once() -> None:
    settings = MonitorSettings(alpha=1.5, max_turns=3, unit=BudgetUnit.CONVERSATION)
    monitors = Monitors(settings, TurnScores.of(np.linspace(0, 1, 30), np.arange(30) // 3))
    for number in range(200):
        for turn in range(3):
            calls = int(turn < 2)
            monitors.update(Request(str(number), "digest", (0.5,), calls, is_placed=True, at=number, earlier=turn))
    assert monitors.rates.per_conversation == 2.0
    assert monitors.rate.alarmed_at is not None


def test_saved_monitors_go_on_exactly_where_they_were(tmp_path: Path) -> None:
    first = kept(tmp_path)
    feed(first, 300)
    first.save()
    second = kept(tmp_path)
    for monitors in (first, second):
        feed(monitors, 50, seed=1)
    assert second.monitors.state() == first.monitors.state()
    assert second.monitors.rates.requests == 350


def test_a_save_is_made_at_the_first_request_and_when_it_is_due(tmp_path: Path) -> None:
    clock = ManualClock()
    clock.now = -40.0
    monitors = kept(tmp_path, save_every_s=30.0, clock=clock)
    clock.now = -10.0
    monitors.tick()
    clock.now = 0.0
    monitors.tick()
    assert not list(tmp_path.glob("*.json"))
    feed(monitors, 5)
    (log,) = tmp_path.glob("*.wal")
    written = log.read_bytes()
    clock.now = 29.9
    monitors.tick()
    assert log.read_bytes() == written
    clock.now = 30.0
    monitors.tick()
    assert log.read_bytes() == b""
    assert kept(tmp_path).monitors.state() == monitors.monitors.state()
    feed(monitors, 2, seed=1)
    monitors.tick(is_last=True)
    assert log.read_bytes() == b""
    assert kept(tmp_path).monitors.state() == monitors.monitors.state()


def test_what_came_after_the_last_save_is_repeated_from_the_log(tmp_path: Path) -> None:
    first = kept(tmp_path)
    feed(first, 400)
    first.save()
    feed(first, 300, seed=1)
    again = kept(tmp_path)
    assert again.monitors.state() == first.monitors.state()
    for monitors in (first.monitors, again.monitors):
        feed(monitors, 100, seed=2)
    assert again.monitors.state() == first.monitors.state()


def test_a_crash_between_the_save_and_the_clearing_of_the_log_repeats_nothing_twice(tmp_path: Path) -> None:
    first = kept(tmp_path)
    feed(first, 50)
    (log,) = tmp_path.glob("*.wal")
    written = log.read_bytes()
    first.save()
    log.write_bytes(written)
    assert kept(tmp_path).monitors.state() == first.monitors.state()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    first = kept(tmp_path)
    feed(first, 50)
    state = first.monitors.state()
    (log,) = tmp_path.glob("*.wal")
    whole = log.read_bytes()
    feed(first, 1, seed=1)
    torn = log.read_bytes()[: len(whole) + 20]
    log.write_bytes(torn)
    assert kept(tmp_path).monitors.state() == state


def test_an_update_that_is_none_starts_new_monitors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = kept(tmp_path)
    feed(first, 5)
    assert first.state_file is not None
    save = json.loads(first.state_file.read_text())["save"]
    (log,) = tmp_path.glob("*.wal")
    log.write_text(json.dumps([save, "request", "name"]) + "\n")
    assert kept(tmp_path).monitors.rates.requests == 0
    assert "unknown update" in caplog.text


def test_other_settings_or_scores_begin_anew_and_the_size_of_the_buffer_is_none_of_them(tmp_path: Path) -> None:
    feed(first := kept(tmp_path), 150)
    first.save()
    assert kept(tmp_path, replace(SETTINGS, alpha=0.3)).monitors.rates.requests == 0
    assert kept(tmp_path, replace(SETTINGS, max_turns=4)).monitors.rates.requests == 0
    assert kept(tmp_path, scores=TurnScores(SCORES.d + 0.1)).monitors.rates.requests == 0
    assert kept(tmp_path, scores=TurnScores(SCORES.d, np.arange(400) // 2)).monitors.rates.requests == 0
    fewer = kept(tmp_path, replace(SETTINGS, keep_scores=10)).monitors
    assert (fewer.rates.requests, len(fewer.recent)) == (150, 9)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"count": 1}'])
def test_a_state_that_is_none_is_said_and_left_behind(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    feed(first := kept(tmp_path), 10)
    first.save()
    assert first.state_file is not None
    first.state_file.write_text(content)
    del first
    gc.collect()
    monitors = kept(tmp_path)
    assert monitors.monitors.rates.requests == 0
    assert "new monitors start" in caplog.text
    feed(monitors, 3)
    monitors.save()
    assert kept(tmp_path).monitors.rates.requests == 3


def test_whoever_removes_the_state_has_the_monitors_begin_anew(tmp_path: Path) -> None:
    monitors = kept(tmp_path)
    feed(monitors, 10)
    monitors.save()
    assert monitors.state_file is not None
    monitors.state_file.unlink()
    monitors.save()
    assert monitors.monitors.rates.requests == 0
    assert kept(tmp_path).monitors.rates.requests == 0


def test_an_alarm_is_said_once_and_outlives_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = MonitorSettings(alpha=0.2)
    monitors = kept(tmp_path, settings)
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            monitors.update(single(0.9, calls=1))
    raised = monitors.monitors.alarms()
    assert raised["rate"] is not None
    assert raised["score_drift"] is not None
    said = [record.getMessage() for record in caplog.records]
    assert sum("alarm rate: raised at conversation" in text for text in said) == 1
    monitors.save()
    caplog.clear()
    again = kept(tmp_path, settings)
    assert again.monitors.alarms() == raised
    assert "alarm rate" in caplog.text


def test_of_two_that_share_a_folder_one_writes_and_the_other_says_so_until_the_first_has_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feed(first := kept(tmp_path), 10)
    first.save()
    feed(second := kept(tmp_path), 5)
    for _ in range(2):
        second.save()
    assert kept(tmp_path).monitors.rates.requests == 10
    assert sum("another process writes" in record.getMessage() for record in caplog.records) == 1
    del first
    gc.collect()
    second.save()
    assert kept(tmp_path).monitors.rates.requests == 15


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monitors = kept(tmp_path / "file" / "state")
    feed(monitors, 3)
    monitors.save()
    assert "could not be saved" in caplog.text
    assert monitors.monitors.rates.requests == 3


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    monitors = kept(None)
    feed(monitors, 3)
    monitors.save()
    assert (monitors.state_file, monitors.scores_file) == (None, None)


_WRITER = """
import sys
from pathlib import Path
from tests.monitors.test_kept_monitors import feed, kept
monitors = kept(Path(sys.argv[1]))
for seed in range(1, 10_000):
    feed(monitors, 30, seed)
    if seed % 5 == 0:
        monitors.save()
    print(seed, flush=True)
"""


@pytest.mark.parametrize("rounds", [3, 9, 14])
def test_after_a_kill_between_saves_the_numbers_are_those_of_an_uninterrupted_process(
    tmp_path: Path, rounds: int
) -> None:
    first = kept(tmp_path)
    feed(first, 3)
    first.close()
    uninterrupted = Monitors.from_state(first.monitors.state(), SETTINGS, SCORES)
    process = subprocess.Popen(  # noqa: S603  # fixed words
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    for _ in range(rounds):
        process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    resumed = kept(tmp_path).monitors
    assert resumed.rates.requests >= 3 + 30 * rounds

    def counts(monitors: Monitors) -> tuple[int, int]:
        assert monitors.audit is not None
        return monitors.rates.requests, monitors.audit.inputs

    for update in chain.from_iterable(updates(30, seed) for seed in range(1, 10_000)):
        if counts(uninterrupted) == counts(resumed):
            break
        update(uninterrupted)
    assert resumed.state() == uninterrupted.state()


def test_a_log_that_cannot_be_cleared_loses_no_later_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitors = kept(tmp_path)
    feed(monitors, 5)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(WriteAheadLog, "clear", fail)
        monitors.save()
    feed(monitors, 7, seed=1)
    assert kept(tmp_path).monitors.state() == monitors.monitors.state()


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_a_process_that_began_earlier_continues_the_state_of_the_one_that_has_gone(
    ends: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = kept(tmp_path)
    feed(first, 6)
    second = kept(tmp_path)  # begins while the first one runs, as in a rolling restart
    feed(second, 2, seed=1)
    feed(first, 30, seed=2)
    if ends == "closed":
        first.close()
    else:
        first._release()  # the system releases the lock of a killed process, which saves nothing more
    second.save()
    assert "they continue from its state, without the" in caplog.text
    assert second.monitors.state() == first.monitors.state()
    feed(second, 3, seed=3)
    second.save()
    assert kept(tmp_path).monitors.rates.requests == 39
