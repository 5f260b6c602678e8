"""Actors ask the expert once about every conversation, whichever process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.progress import Progress
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.cluster import RayConfig
from calibrate.config.expert import AskedOpenAIExpert
from calibrate.expert_scores.ask import score_with
from calibrate.expert_scores.requests import ExpertScores
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.rows.data import Dataset
from ctd_guardrail.errors import DataError, ExpertUnavailableError
from ctd_guardrail.experts.build import build_expert
from tests.support.waiting import wait_until

CONCURRENCY = 4
ROOT = Path(__file__).parents[2]


def _score(dataset: Dataset, section: dict[str, Any], cache: Path, run_on: RayConfig | None) -> ExpertScores:
    cache.mkdir(exist_ok=True)
    expert = AskedOpenAIExpert(**section)
    with Progress(disable=True) as progress:
        return score_with(expert, dataset, np.arange(len(dataset)), cache=cache, progress=progress, run_on=run_on)[1]


def _journal(section: dict[str, Any], cache: Path) -> ScoreLog:
    return ScoreLog(cache / "expert.sqlite", build_expert(AskedOpenAIExpert(**section)).identity)


def test_scores_are_those_of_the_plain_loop_and_the_next_run_asks_nothing(
    dataset: Dataset,
    run_on: RayConfig,
    row_judge: Any,
    expert_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    section, different = expert_section(), len(dataset) - 1
    far = _score(dataset, section, tmp_path / "ray", run_on)
    assert Counter(row_judge.asked).most_common(1)[0][1] == 1
    assert (len(row_judge.asked), far.asked, far.asked_again, far.tokens) == (different, different, 0, 10 * different)
    again = _score(dataset, section, tmp_path / "ray", None)
    assert (len(row_judge.asked), again.asked) == (different, 0)
    plain = _score(dataset, section, tmp_path / "plain", None)
    for each in (far, again):
        np.testing.assert_array_equal(each.p, plain.p)


def test_a_failure_stops_all_actors_and_is_the_runs_own_error(
    dataset: Dataset,
    run_on: RayConfig,
    row_judge: Any,
    expert_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    row_judge.refuses = True
    with pytest.raises(ExpertUnavailableError, match=f"; 0 of {len(dataset) - 1} expert scores are saved") as caught:
        _score(dataset, expert_section(), tmp_path, run_on)
    assert "Run the command again" in caught.value.hint
    assert len(row_judge.asked) <= 2 * CONCURRENCY
    with _journal(expert_section(), tmp_path) as journal:
        assert not journal.left_open(conversation.digest() for conversation in dataset.conversations)


def test_refused_rows_are_left_out_up_to_a_number_as_in_the_plain_loop(
    dataset: Dataset,
    run_on: RayConfig,
    row_judge: Any,
    expert_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    # Row 8 stands there twice.
    row_judge.declines, row_judge.filters = {"row-0008", "row-0020"}, {"row-0040"}
    for most, ends in ((3, True), (3, True), (4, False), (4, False)):
        before = len(row_judge.asked)
        if ends:
            with pytest.raises(
                DataError, match=rf"rows\.jsonl, row \d+: .* At most 3 of {len(dataset)} rows"
            ) as caught:
                _score(dataset, expert_section(max_refused_rows=most), tmp_path / "ray", run_on)
            assert "max_refused_rows" in caught.value.hint
        else:
            far = _score(dataset, expert_section(max_refused_rows=most), tmp_path / "ray", run_on)
            assert [each.row for each in far.refused] == [8, 9, 20, 40]
            assert far.asked == len(row_judge.asked) - before
    assert max(Counter(row_judge.asked).values()) == 1
    assert far.asked == 0
    plain = _score(dataset, expert_section(max_refused_rows=4), tmp_path / "plain", None)
    np.testing.assert_array_equal(far.p, plain.p)
    assert far.refused == plain.refused


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_lost_actor_costs_the_questions_that_it_had_under_way(
    dataset: Dataset,
    run_on: RayConfig,
    row_judge: Any,
    expert_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        row_judge.wait_for(15)
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)  # noqa: S607
        actor = "MapWorker(MapBatches(_ScoringActor))"
        pids = [int(line.split()[0]) for line in listed.stdout.splitlines() if actor in line]
        killed.append(pids[0])
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    scores = _score(dataset, expert_section(), tmp_path, run_on)
    killer.join()
    assert killed
    counts = Counter(row_judge.asked)
    assert (len(counts), scores.p.size) == (len(dataset) - 1, len(dataset))
    twice = [row for row, count in counts.items() if count > 1]
    assert len(twice) <= CONCURRENCY // 2
    assert max(counts.values()) <= 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_goes_on_and_ends_in_the_plain_loops_own_policy(
    dataset: Dataset,
    run_on: RayConfig,
    row_judge: Any,
    expert_section: Callable[..., dict[str, Any]],
    tiny_bert: Path,
    tmp_path: Path,
) -> None:
    def write(name: str, **sections: Any) -> Path:
        content = {
            "base": {"model": str(tiny_bert), "layers": 1, "site": "residual", "device": "cpu"},
            "data": {"path": str(dataset.files[0])},
            "expert": expert_section(),
            "budget": {"alpha": 0.3, "delta": 0.2},
            "output": f"./{name}",
            "cache": f"./{name}-cache",
        }
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(content | sections))
        return tmp_path / f"{name}.yml"

    file = write("far", run_on={"type": "ray", "actors": 2})
    process = subprocess.Popen(  # noqa: S603  # our own command line
        [sys.executable, "-m", "calibrate", "run", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        row_judge.wait_for(15)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Its actors end when they notice.
    seen = [-1]

    def is_quiet() -> bool:
        seen.append(len(row_judge.asked))
        return seen[-1] == seen[-2]

    wait_until(is_quiet, every_s=1.0)
    digests = {conversation.digest() for conversation in dataset.conversations}
    with _journal(expert_section(), tmp_path / "far-cache") as journal:
        saved, left_open = set(journal.known(digests)), journal.left_open(digests)
    asked = len(row_judge.asked)
    assert 15 <= asked <= len(saved) + len(left_open) < len(digests)
    assert len(left_open) <= CONCURRENCY

    done = CliRunner().invoke(app, ["run", str(file), "--json"])
    assert done.exit_code == 0, done.output
    expert = json.loads(done.stdout)["expert"]
    assert expert["asked"] == len(row_judge.asked) - asked
    assert expert["asked_again"] == len(left_open)
    counts = Counter(row_judge.asked)
    assert sum(count - 1 for count in counts.values()) <= len(left_open)

    assert CliRunner().invoke(app, ["run", str(write("plain"))]).exit_code == 0
    far, plain = (tmp_path / name / "policy.safetensors" for name in ("far", "plain"))
    assert far.read_bytes() == plain.read_bytes()
