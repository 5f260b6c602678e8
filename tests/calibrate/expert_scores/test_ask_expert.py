"""Expert scores are money: each is saved at once, and none is asked for twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stamina
from rich.progress import Progress

from calibrate.expert_scores.ask import ask_expert
from calibrate.expert_scores.requests import ExpertScores
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.rows.data import Dataset, read_dataset
from ctd_guardrail.errors import DataError, ExpertTimeoutError, ExpertUnavailableError, OverlongError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.waiting import eventually

COUNT = 120
CONCURRENCY = 4


class RecordingExpert:
    """Answers after a moment, and remembers what it was asked and how many questions it had at once."""

    def __init__(
        self, identity: str = "recording:1", *, fail_at: int | None = None, error: Exception | None = None
    ) -> None:
        self.identity = identity
        self.asked: list[str] = []
        self.most_at_once = 0
        self.many_asked = asyncio.Event()
        self._now = 0
        self._fail_at = fail_at
        self._error = error or ExpertUnavailableError("the expert refused (401)", hint="Start it", is_transient=False)

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.asked.append(conversation.digest())
        number = len(self.asked)
        if number == COUNT // 4:
            self.many_asked.set()
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0.001)
        self._now -= 1
        if number == self._fail_at:
            raise self._error
        return ExpertScore(len(conversation.messages[0].content) % 100 / 100, tokens=10)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def dataset(make_rows: Callable[..., list[dict[str, Any]]], write_rows: Callable[..., Path]) -> Dataset:
    return read_dataset([write_rows(make_rows(COUNT))])


async def _ask(dataset: Dataset, expert: RecordingExpert, journal: Path) -> ExpertScores:
    with Progress(disable=True) as progress:
        return await ask_expert(
            dataset, np.arange(len(dataset)), expert, log=journal, concurrency=CONCURRENCY, progress=progress
        )


def _saved(dataset: Dataset, journal: Path, identity: str = "recording:1") -> set[str]:
    with ScoreLog(journal, identity) as saved:
        return set(saved.known(conversation.digest() for conversation in dataset.conversations))


async def test_every_row_gets_its_score(dataset: Dataset, tmp_path: Path) -> None:
    expert = RecordingExpert()
    scores = await _ask(dataset, expert, tmp_path / "expert.sqlite")
    expected = [len(conversation.messages[0].content) % 100 / 100 for conversation in dataset.conversations]
    assert scores.p.tolist() == expected
    assert (scores.asked, scores.tokens) == (COUNT, 10 * COUNT)
    assert expert.most_at_once == CONCURRENCY


async def test_a_second_run_asks_nothing(dataset: Dataset, tmp_path: Path) -> None:
    first = await _ask(dataset, RecordingExpert(), tmp_path / "expert.sqlite")
    expert = RecordingExpert()
    second = await _ask(dataset, expert, tmp_path / "expert.sqlite")
    assert expert.asked == []
    assert (second.asked, second.tokens) == (0, None)
    np.testing.assert_array_equal(second.p, first.p)


async def test_another_expert_is_asked_anew(dataset: Dataset, tmp_path: Path) -> None:
    await _ask(dataset, RecordingExpert(), tmp_path / "expert.sqlite")
    expert = RecordingExpert("recording:2")
    await _ask(dataset, expert, tmp_path / "expert.sqlite")
    assert len(expert.asked) == COUNT


async def test_the_same_conversation_is_asked_once(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": "same", "label": i % 2} for i in range(6)]
    expert = RecordingExpert()
    scores = await _ask(read_dataset([write_rows(rows)]), expert, tmp_path / "expert.sqlite")
    assert len(expert.asked) == 1
    assert scores.p.tolist() == [0.04] * 6


async def test_a_failure_saves_what_was_under_way_and_the_next_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    journal = tmp_path / "expert.sqlite"
    failing = RecordingExpert(fail_at=50)
    with pytest.raises(ExpertUnavailableError) as caught:
        await _ask(dataset, failing, journal)
    saved = _saved(dataset, journal)
    # All that were asked, but for the one that failed.
    assert len(saved) == len(failing.asked) - 1 < 50 + CONCURRENCY
    assert f"refused (401); {len(saved)} of {COUNT} expert scores are saved in {journal}" in str(caught.value)
    assert caught.value.hint == "Start it. Run the command again to continue from there"
    healthy = RecordingExpert()
    await _ask(dataset, healthy, journal)
    assert len(healthy.asked) == COUNT - len(saved)
    assert not saved & set(healthy.asked)


async def test_what_may_pass_is_tried_again(dataset: Dataset, tmp_path: Path) -> None:
    expert = RecordingExpert(fail_at=50, error=ExpertTimeoutError("late"))
    with stamina.set_testing(True, attempts=3):
        scores = await _ask(dataset, expert, tmp_path / "expert.sqlite")
    assert scores.p.size == COUNT
    assert len(expert.asked) == COUNT + 1
    assert len(set(expert.asked)) == COUNT


async def test_calibration_waits_as_long_as_the_expert_asks_for(dataset: Dataset, tmp_path: Path) -> None:
    waits: list[float] = []
    busy = ExpertUnavailableError("HTTP 429", retry_after_s=0.9)
    expert, before = RecordingExpert(fail_at=1, error=busy), stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append(details.wait_for)])
    try:
        scores = await _ask(dataset, expert, tmp_path / "expert.sqlite")
    finally:
        stamina.instrumentation.set_on_retry_hooks(before)
    assert waits == [0.9]  # the first pause of its own is at most 0.75 s
    assert (scores.asked, len(expert.asked)) == (COUNT, COUNT + 1)


async def test_calibration_does_not_wait_for_hours(dataset: Dataset, tmp_path: Path) -> None:
    expert = RecordingExpert(fail_at=COUNT, error=ExpertUnavailableError("HTTP 429", retry_after_s=7200))
    with pytest.raises(ExpertUnavailableError, match=f"429; {COUNT - 1} of {COUNT} expert scores are saved"):
        await _ask(dataset, expert, tmp_path / "expert.sqlite")
    assert len(expert.asked) == COUNT


async def test_a_row_that_the_expert_cannot_read_is_named(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too long") as caught:
        await _ask(dataset, RecordingExpert(fail_at=7, error=OverlongError("too long")), tmp_path / "expert.sqlite")
    assert (caught.value.file, caught.value.row) == (dataset.files[0], 7)


async def test_a_bug_in_the_expert_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    expert = RecordingExpert(fail_at=7, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await _ask(dataset, expert, tmp_path / "expert.sqlite")
    assert len(expert.asked) < 7 + CONCURRENCY
    assert len(_saved(dataset, tmp_path / "expert.sqlite")) == len(expert.asked) - 1


async def test_an_interrupted_run_saves_what_was_under_way(dataset: Dataset, tmp_path: Path) -> None:
    expert = RecordingExpert()
    task = asyncio.create_task(_ask(dataset, expert, tmp_path / "expert.sqlite"))
    await expert.many_asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(expert.asked) < COUNT
    assert _saved(dataset, tmp_path / "expert.sqlite") == set(expert.asked)


_RUN_UNTIL_KILLED = """
import asyncio, os, sys
from pathlib import Path
import numpy as np
from rich.progress import Progress
from calibrate.rows.data import read_dataset
from calibrate.expert_scores.ask import ask_expert
from ctd_guardrail.experts.protocol import ExpertScore

rows, journal, log = map(Path, sys.argv[1:4])

class SlowExpert:
    identity = "recording:1"
    def __init__(self):
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async def score(self, conversation):
        os.write(self.log, (conversation.digest() + "\\n").encode())
        await asyncio.sleep(0.02)
        return ExpertScore(0.5)

dataset = read_dataset([rows])
rows = np.arange(len(dataset))
with Progress(disable=True) as progress:
    asyncio.run(ask_expert(dataset, rows, SlowExpert(), log=journal, concurrency=4, progress=progress))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
async def test_a_killed_run_has_lost_only_what_was_under_way(dataset: Dataset, tmp_path: Path) -> None:
    journal, log = tmp_path / "expert.sqlite", tmp_path / "asked.log"
    root = Path(__file__).parents[3]
    process = subprocess.Popen(  # noqa: ASYNC220, S603  # nothing else runs on this loop; the program is above
        [sys.executable, "-c", _RUN_UNTIL_KILLED, dataset.files[0], journal, log],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    await eventually(lambda: process.poll() is not None or (log.exists() and log.read_text().count("\n") >= 40))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()

    asked = log.read_text().split()
    saved = _saved(dataset, journal)
    assert saved <= set(asked)
    assert len(asked) - len(saved) <= CONCURRENCY
    expert = RecordingExpert()
    await _ask(dataset, expert, journal)
    assert not saved & set(expert.asked)
    assert len(saved) + len(expert.asked) == COUNT


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "expert.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="not a readable score log"):
        ScoreLog(tmp_path / "expert.sqlite", "recording:1")
