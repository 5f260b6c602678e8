import gc
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import Monitors, MonitorSettings
from ctd_guardrail.monitors.recent_scores import RecentScores
from tests.support.clocks import ManualClock

SCORES = np.linspace(-1.0, 1.0, 400)
SETTINGS = MonitorSettings(alpha=0.2, audit_share=0.05, keep_scores=100)


def kept(
    folder: Path | None, settings: MonitorSettings = SETTINGS, scores: Any = SCORES, **options: Any
) -> KeptMonitors:
    return KeptMonitors(settings, scores, folder=folder, **options)


def feed(monitors: KeptMonitors | Monitors, number: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(number):
        audited = rng.random() < 0.05
        monitors.update(float(rng.uniform(-1, 1)), delegated=audited or rng.random() < 0.1, audited=audited)
        if audited:
            monitors.audited(missed=False)


def test_one_input_reaches_every_monitor() -> None:
    monitors = Monitors(SETTINGS, SCORES)
    monitors.update(0.5, delegated=True, audited=True)
    monitors.update(0.25, delegated=False)
    monitors.update(0.0, delegated=None)
    monitors.audited(missed=True)
    assert (monitors.count.inputs, monitors.count.delegated) == (2, 1)
    assert monitors.rate.steps == 2
    assert monitors.drift.conformal.steps == monitors.drift.exceedance.steps == 3
    assert monitors.audit is not None
    assert (monitors.audit.inputs, monitors.audit.audits, monitors.audit.misses) == (2, 1, 1)
    assert monitors.recent.csv() == "dv\n0.5\n0.25\n0.0\n"


def test_saved_monitors_go_on_exactly_where_they_were(tmp_path: Path) -> None:
    first = kept(tmp_path)
    feed(first, 300)
    first.save()
    second = kept(tmp_path)
    for monitors in (first, second):
        feed(monitors, 50, seed=1)
    assert second.monitors.state() == first.monitors.state()
    assert second.monitors.count.inputs == 350


def test_nothing_is_saved_before_it_is_due_and_all_of_it_then(tmp_path: Path) -> None:
    clock = ManualClock()
    monitors = kept(tmp_path, save_every_s=30.0, clock=clock)
    feed(monitors, 5)
    clock.now = 29.9
    monitors.tick()
    assert not list(tmp_path.iterdir())
    clock.now = 30.0
    monitors.tick()
    assert kept(tmp_path).monitors.count.inputs == 5
    feed(monitors, 2)
    monitors.tick(is_last=True)
    assert kept(tmp_path).monitors.count.inputs == 7


def test_other_settings_or_scores_begin_anew_and_the_size_of_the_buffer_is_none_of_them(tmp_path: Path) -> None:
    feed(first := kept(tmp_path), 150)
    first.save()
    assert kept(tmp_path, MonitorSettings(alpha=0.3, audit_share=0.05)).monitors.count.inputs == 0
    assert kept(tmp_path, scores=SCORES + 0.1).monitors.count.inputs == 0
    fewer = kept(tmp_path, MonitorSettings(alpha=0.2, audit_share=0.05, keep_scores=10)).monitors
    assert (fewer.count.inputs, len(fewer.recent)) == (150, 10)


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
    assert monitors.monitors.count.inputs == 0
    assert "new monitors start" in caplog.text
    feed(monitors, 3)
    monitors.save()
    assert kept(tmp_path).monitors.count.inputs == 3


def test_whoever_removes_the_state_has_the_monitors_begin_anew(tmp_path: Path) -> None:
    monitors = kept(tmp_path)
    feed(monitors, 10)
    monitors.save()
    assert monitors.state_file is not None
    monitors.state_file.unlink()
    monitors.save()
    assert monitors.monitors.count.inputs == 0
    assert kept(tmp_path).monitors.count.inputs == 0


def test_an_alarm_is_said_once_and_outlives_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitors = kept(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            monitors.update(0.9, delegated=True)
    raised = monitors.monitors.alarms()
    assert raised["rate"] is not None
    assert raised["score_drift"] is not None
    said = [record.getMessage() for record in caplog.records]
    assert sum("alarm rate: raised at input" in text for text in said) == 1
    monitors.save()
    caplog.clear()
    again = kept(tmp_path)
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
    assert kept(tmp_path).monitors.count.inputs == 10
    assert sum("another process writes" in record.getMessage() for record in caplog.records) == 1
    del first
    gc.collect()
    second.save()
    assert kept(tmp_path).monitors.count.inputs == 15


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monitors = kept(tmp_path / "file" / "state")
    feed(monitors, 3)
    monitors.save()
    assert "could not be saved" in caplog.text
    assert monitors.monitors.count.inputs == 3


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    monitors = kept(None)
    feed(monitors, 3)
    monitors.save()
    assert (monitors.state_file, monitors.scores_file) == (None, None)


def test_the_buffer_keeps_the_newest_scores_only() -> None:
    recent = RecentScores(3)
    for d in (0.1, 0.2, 0.3, 1 / 3):
        recent.update(d)
    assert recent.csv() == f"dv\n0.2\n0.3\n{1 / 3!r}\n"
    assert RecentScores.from_state(json.loads(json.dumps(recent.state()))).csv() == recent.csv()
    with pytest.raises(DataError, match="finite"):
        recent.update(float("nan"))


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
kept = KeptMonitors(MonitorSettings(alpha=0.2, keep_scores=5000), np.linspace(-1, 1, 400), folder=Path(sys.argv[1]))
rng = np.random.default_rng(kept.monitors.count.inputs)
while True:
    for _ in range(20):
        kept.update(float(rng.uniform(-1, 1)), delegated=False)
    kept.save()
    print(kept.monitors.count.inputs, flush=True)
"""


def test_a_process_that_is_killed_while_it_saves_loses_what_came_after_the_last_save_and_no_more(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(  # noqa: S603  # fixed words
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = int(process.stdout.readline())
        time.sleep(float(rng.uniform(0.0, 0.05)))
        process.kill()
        said = max([said, *(int(line) for line in process.stdout.read().splitlines()[:-1])])
        process.wait()
        process.stdout.close()
        monitors = kept(tmp_path, MonitorSettings(alpha=0.2, keep_scores=5000)).monitors
        assert monitors.count.inputs >= said > reached
        reached = monitors.count.inputs
        (scores,) = tmp_path.glob("scores-*.csv")
        rows = scores.read_text().splitlines()
        assert rows[0] == "dv"
        assert np.isfinite([float(row) for row in rows[1:]]).all()
