"""Rows that the expert's endpoint refuses: named, left out, paid for once, and too many of them end the run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner, Result

from calibrate.cli.app import app
from calibrate.compute.progress import progress_bars
from calibrate.config.expert import AskedLocalExpert, AskedOpenAIExpert
from calibrate.config.file import load_config
from calibrate.expert_scores.ask import score_with
from calibrate.expert_scores.requests import ExpertScores
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.rows.data import Dataset, read_dataset
from ctd_guardrail.errors import ConfigError, DataError, ExpertUnavailableError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.local.windows import MAX_TOKENS
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.store import read_policy
from tests.support.loopback_judge import RowJudge

COUNT = 200
CONCURRENCY = 4
ROOT = Path(__file__).parents[3]

Row = dict[str, Any]
Make = Callable[..., list[Row]]
Write = Callable[..., Path]


@pytest.fixture
def row_judge() -> Iterator[RowJudge]:
    judge = RowJudge()
    yield judge
    judge.close()


@pytest.fixture
def rows(make_rows: Make) -> list[Row]:
    return [row | {"text": f"row-{number:04d} {row['text']}"} for number, row in enumerate(make_rows(COUNT))]


@pytest.fixture
def dataset(rows: list[Row], write_rows: Write) -> Dataset:
    return read_dataset([write_rows(rows)])


def name(row: int) -> str:
    return f"row-{row:04d}"


def section(judge: RowJudge, **settings: Any) -> dict[str, Any]:
    expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "max_concurrency": CONCURRENCY}
    return expert | settings


def ask(
    dataset: Dataset, judge: RowJudge, cache: Path, *, console: Console | None = None, again: bool = False, **keys: Any
) -> ExpertScores:
    cache.mkdir(exist_ok=True)
    expert = AskedOpenAIExpert(**section(judge, **keys))
    with progress_bars(console or Console(quiet=True)) as progress:
        _, scores = score_with(
            expert, dataset, np.arange(len(dataset)), cache=cache, progress=progress, ask_refused_again=again
        )
    return scores


@pytest.mark.parametrize("form", ["declines", "filters", "blocks", "overflows"])
def test_the_run_goes_on_and_names_the_row(dataset: Dataset, row_judge: RowJudge, tmp_path: Path, form: str) -> None:
    setattr(row_judge, form, {name(7), name(31)})
    console = Console(file=io.StringIO(), record=True)
    scores = ask(dataset, row_judge, tmp_path / "cache", console=console)
    assert np.flatnonzero(np.isnan(scores.p)).tolist() == [7, 31]
    assert [str(each) for each in scores.refused] == ["rows.jsonl, row 8", "rows.jsonl, row 32"]
    said = console.export_text()
    for each in scores.refused:
        assert f"{each}: the expert gives no score for it" in said
        assert each.refusal.problem in said
    assert Counter(row_judge.asked) == Counter(map(name, range(COUNT)))

    again = ask(dataset, row_judge, tmp_path / "cache")
    assert len(row_judge.asked) == COUNT
    assert (again.asked, again.refused) == (0, scores.refused)
    np.testing.assert_array_equal(again.p, scores.p)


def test_what_a_local_expert_cannot_read_is_left_out_too(
    rows: list[Row], write_rows: Write, tiny_bert: Path, tmp_path: Path
) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, id2label={0: "safe", 1: "unsafe"}, label2id={"safe": 0, "unsafe": 1}
    )
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "classifier")
    classifier.save_pretrained(tmp_path / "classifier")
    rows = rows[:20]
    rows[7]["text"] = "a " * (16 * MAX_TOKENS)  # more characters than it reads
    dataset = read_dataset([write_rows(rows)])
    expert = AskedLocalExpert(type="local", model=str(tmp_path / "classifier"), device="cpu", max_refused_rows=1)
    with progress_bars(Console(quiet=True)) as progress:
        for asked in (20, 0):
            _, scores = score_with(expert, dataset, np.arange(20), cache=tmp_path, progress=progress)
            assert [(str(each), scores.asked) for each in scores.refused] == [("rows.jsonl, row 8", asked)]
            assert np.flatnonzero(np.isnan(scores.p)).tolist() == [7]
    assert "Shorten" in scores.refused[0].refusal.hint


def test_another_expert_is_asked_about_refused_rows(dataset: Dataset, row_judge: RowJudge, tmp_path: Path) -> None:
    row_judge.declines = {name(7)}
    ask(dataset, row_judge, tmp_path)
    row_judge.declines = set()
    scores = ask(dataset, row_judge, tmp_path, model="another")
    assert (scores.asked, scores.refused) == (COUNT, ())


def test_refused_rows_alone_are_asked_again_where_that_is_wanted(
    dataset: Dataset, row_judge: RowJudge, tmp_path: Path
) -> None:
    row_judge.declines = {name(7), name(31)}
    ask(dataset, row_judge, tmp_path)
    row_judge.asked, row_judge.declines = [], {name(31)}
    scores = ask(dataset, row_judge, tmp_path, again=True)
    assert sorted(row_judge.asked) == [name(7), name(31)]
    assert [each.row for each in scores.refused] == [31]
    assert not np.isnan(scores.p[7])


@pytest.mark.parametrize(("most", "allowed"), [(3, 3), (0.02, 4), (0, 0)])
def test_one_row_too_many_ends_the_run(
    dataset: Dataset, row_judge: RowJudge, tmp_path: Path, most: float, allowed: int
) -> None:
    refused = list(range(5, 105, 5))
    row_judge.declines = set(map(name, refused))
    with pytest.raises(DataError) as caught:
        ask(dataset, row_judge, tmp_path, max_refused_rows=most)
    assert caught.value.row is not None
    assert caught.value.row - 1 in refused[: allowed + CONCURRENCY]
    assert f"rows.jsonl, row {caught.value.row}: the expert gives no score for this row (" in str(caught.value)
    assert f"At most {allowed} of {COUNT} rows may be left out" in str(caught.value)
    assert "raise expert.max_refused_rows" in caught.value.hint
    if allowed:
        assert "; rows.jsonl, row " in str(caught.value)
    # The run ends early. Other workers go on while the refusal of a row is looked into.
    asked = len(row_judge.asked)
    assert asked < COUNT

    # As it stands, the next run cannot do better, and asks nothing.
    with pytest.raises(DataError):
        ask(dataset, row_judge, tmp_path, max_refused_rows=most)
    assert len(row_judge.asked) == asked

    # With more room it goes on, and pays for no row twice.
    scores = ask(dataset, row_judge, tmp_path, max_refused_rows=len(refused))
    assert [each.row for each in scores.refused] == refused
    assert Counter(row_judge.asked) == Counter(map(name, range(COUNT)))


def test_a_refused_conversation_counts_with_all_its_rows(
    rows: list[Row], write_rows: Write, row_judge: RowJudge, tmp_path: Path
) -> None:
    for copy in (20, 21):
        rows[copy]["text"] = rows[7]["text"]
    dataset = read_dataset([write_rows(rows)])
    row_judge.declines = {name(7)}
    with pytest.raises(DataError, match="At most 2 of 200"):
        ask(dataset, row_judge, tmp_path, max_refused_rows=2)
    scores = ask(dataset, row_judge, tmp_path, max_refused_rows=3)
    assert [each.row for each in scores.refused] == [7, 20, 21]
    assert Counter(row_judge.asked)[name(7)] == 1


def test_an_outage_still_ends_the_run(dataset: Dataset, row_judge: RowJudge, tmp_path: Path) -> None:
    row_judge.declines, row_judge.breaks_at = {name(7)}, 61
    with pytest.raises(ExpertUnavailableError, match=f"of {COUNT} expert scores are saved"):
        ask(dataset, row_judge, tmp_path)
    assert 61 <= len(row_judge.asked) < 61 + CONCURRENCY
    failed = row_judge.asked[60:]
    row_judge.breaks_at = sys.maxsize
    scores = ask(dataset, row_judge, tmp_path)
    assert [each.row for each in scores.refused] == [7]
    assert Counter(row_judge.asked) == Counter([*map(name, range(COUNT)), *failed])


_RUN = """
import sys
from pathlib import Path
import numpy as np
from rich.progress import Progress
from calibrate.config.file import load_expert
from calibrate.rows.data import read_dataset
from calibrate.expert_scores.ask import score_with

rows, expert, cache = map(Path, sys.argv[1:4])
dataset = read_dataset([rows])
with Progress(disable=True) as progress:
    score_with(load_expert(expert), dataset, np.arange(len(dataset)), cache=cache, progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_asks_no_refused_row_again(dataset: Dataset, row_judge: RowJudge, tmp_path: Path) -> None:
    # Every other row: whichever moment the kill hits, many refusals lie before it.
    refused = list(range(0, COUNT, 2))
    row_judge.declines = set(map(name, refused))
    keys = {"max_refused_rows": COUNT}
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "expert.yml").write_text(yaml.safe_dump({"expert": section(row_judge, **keys)}))
    process = subprocess.Popen(  # noqa: S603  # the program is above
        [sys.executable, "-c", _RUN, dataset.files[0], tmp_path / "expert.yml", cache],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    row_judge.wait_for(60)
    process.send_signal(signal.SIGKILL)
    process.wait()

    digests = [conversation.digest() for conversation in dataset.conversations]
    identity = build_expert(AskedOpenAIExpert(**section(row_judge))).identity
    with ScoreLog(cache / "expert.sqlite", identity) as journal:
        settled = {*journal.known(digests), *journal.refused(digests)}
        left_open = journal.left_open(digests)
    assert len(settled) >= 60 - CONCURRENCY
    scores = ask(dataset, row_judge, cache, **keys)
    assert scores.asked == COUNT - len(settled)
    assert scores.asked_again == len(left_open) <= CONCURRENCY
    assert [each.row for each in scores.refused] == refused
    twice = {row for row, count in Counter(row_judge.asked).items() if count > 1}
    assert twice <= {name(digests.index(digest)) for digest in left_open}
    assert max(Counter(row_judge.asked).values()) <= 2


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def parts(rows: list[Row]) -> list[Row]:
    """Put row i into part i % 4: two of four train."""
    names = ("train", "train", "calibration", "test")
    return [row | {"split": names[number % 4]} for number, row in enumerate(rows)]


def test_every_stage_does_without_the_scores_and_the_budget_counts_the_rows(
    rows: list[Row], write_rows: Write, write_config: Write, row_judge: RowJudge, tmp_path: Path
) -> None:
    write_rows(parts(rows))
    expert = section(row_judge, max_refused_rows=0.05)
    config = write_config(data={"path": "rows.jsonl"}, expert=expert)
    everything = invoke("run", config, "--json")
    assert everything.exit_code == 0, everything.output
    whole = read_policy(tmp_path / "policy")

    # Two training rows, three calibration rows, one test row.
    refused = [4, 9, 6, 10, 14, 3]
    row_judge.asked, row_judge.declines = [], set(map(name, refused))
    config = write_config(data={"path": "rows.jsonl"}, expert=expert | {"model": "strict"})
    result = invoke("run", config, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["split"]["refused"] == {"train": 2, "calibration": 3, "test": 1}
    assert [each["row"] for each in answer["expert"]["refused"]] == sorted(row + 1 for row in refused)
    assert {each["file"] for each in answer["expert"]["refused"]} == {"rows.jsonl"}
    assert answer["evaluation"]["rows"] == 49

    policy = read_policy(tmp_path / "policy")
    assert policy.manifest.training["rows"] == 98
    assert policy.manifest.training["refused"] == {"train": 2, "calibration": 3, "test": 1}
    calibration = policy.calibration
    assert calibration.expert is not None
    # The certificate is that of all calibration rows: the refused ones have a d of their own.
    assert policy.manifest.calibration.rows == calibration.d.size == answer["budget"]["n"] == 50
    assert np.isnan(calibration.expert).sum() == 3
    assert np.isfinite(calibration.d).all()
    assert answer["budget"]["threshold"] == certify(calibration.d, 0.2, 0.1).threshold
    assert calibration.scored.d.size == 47
    assert (answer["budget"]["k"], whole.calibration.d.size) == (json.loads(everything.stdout)["budget"]["k"], 50)

    report = (tmp_path / "policy" / "report.html").read_text()
    card = (tmp_path / "policy" / "MODEL_CARD.md").read_text()
    assert "Rows that the expert refused" in report
    assert answer["expert"]["refused"][0]["problem"].split("'")[0] in report
    assert "no score for 6 other rows: 2 for train, 3 for calibration, 1 for test" in card
    assert "max_refused_rows" not in report
    assert "the expert refused 3: they count in the budget alone" in " ".join(invoke("run", config).stdout.split())

    # An evaluation on the same files takes everything from the journal, refusals included.
    (tmp_path / "expert.yml").write_text(yaml.safe_dump({"expert": expert | {"model": "strict"}}))
    arguments = ("--data", tmp_path / "rows.jsonl", "--expert-config", tmp_path / "expert.yml", "--device", "cpu")
    folders = ("--cache", tmp_path / ".ctd-cache", "--to", tmp_path / "out")
    judged = invoke("evaluate", tmp_path / "policy", *arguments, *folders, "--json")
    assert judged.exit_code == 0, judged.output
    study = json.loads(judged.stdout)
    assert (study["rows"], study["left_out"]["used"], study["left_out"]["refused"]) == (49, 150, 1)
    assert study["is_of_one_law"]
    # Test and calibration rows with a score are split again.
    splits = study["tables"]["splits"]["rows"]
    assert {(row["calibration_rows"], row["counted_rows"]) for row in splits} == {(47, 49)}
    assert Counter(row_judge.asked) == Counter(map(name, range(COUNT)))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"train": 1}, "the rows for training hold"),
        ({"test": 1}, "test rows have one label"),
    ],
)
def test_what_is_left_must_still_do(
    rows: list[Row],
    write_rows: Write,
    write_config: Write,
    row_judge: RowJudge,
    tmp_path: Path,
    labels: dict[str, int],
    problem: str,
) -> None:
    rows = parts(rows)
    write_rows(rows)
    row_judge.declines = {
        name(number) for number, row in enumerate(rows) if (row["split"], row["label"]) in labels.items()
    }
    config = write_config(data={"path": "rows.jsonl"}, expert=section(row_judge, max_refused_rows=0.5))
    result = invoke("run", config)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert not (tmp_path / "policy" / "policy.json").exists()


def test_certified_risks_are_those_of_rows_with_a_score(
    rows: list[Row], write_rows: Write, write_config: Write, row_judge: RowJudge, tmp_path: Path
) -> None:
    write_rows(parts(rows))
    row_judge.declines = {name(6), name(10)}
    budget = {"alpha": 0.3, "delta": 0.2, "risk": {"metric": "error", "max": 0.9}}
    config = write_config(data={"path": "rows.jsonl"}, expert=section(row_judge), budget=budget)
    assert invoke("run", config).exit_code == 0
    policy = read_policy(tmp_path / "policy")
    assert policy.manifest.performance is not None
    assert policy.calibration.d.size == 50
    assert (policy.calibration.d > (policy.manifest.performance.threshold or np.inf)).mean() <= 0.3


def test_an_evaluation_leaves_out_what_the_expert_refuses(
    rows: list[Row], write_rows: Write, write_config: Write, row_judge: RowJudge, tmp_path: Path
) -> None:
    write_rows(rows)
    assert invoke("run", write_config()).exit_code == 0
    other = write_rows([row | {"text": f"{row['text']} other"} for row in rows], "other.jsonl")
    row_judge.filters = {name(7), name(31), name(32)}
    (tmp_path / "expert.yml").write_text(yaml.safe_dump({"expert": section(row_judge, max_refused_rows=2)}))
    arguments = ("evaluate", tmp_path / "policy", "--data", other, "--expert-config", tmp_path / "expert.yml")
    options = ("--cache", tmp_path / "cache", "--to", tmp_path / "out", "--device", "cpu", "--show-text", "--json")
    ended = invoke(*arguments, *options)
    assert ended.exit_code == 2
    assert "other.jsonl, row 8: the expert gives no score for this row" in ended.stderr
    (tmp_path / "expert.yml").write_text(yaml.safe_dump({"expert": section(row_judge, max_refused_rows=3)}))
    done = invoke(*arguments, *options)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["rows"], answer["left_out"]["refused"]) == (COUNT - 3, 3)
    assert [each["row"] for each in answer["refused"]] == [8, 32, 33]
    assert Counter(row_judge.asked) == Counter(map(name, range(COUNT)))
    assert "Rows that the expert refused" in (tmp_path / "out" / "report.html").read_text()
    assert invoke(*arguments, *options, "--ask-refused-again").exit_code == 0
    assert sorted(row_judge.asked[COUNT:]) == sorted(row_judge.filters)


@pytest.mark.parametrize("value", [1.0, 1.5, -1, -0.1, True, "1%", float("nan"), None])
def test_what_is_neither_a_count_nor_a_share_is_refused(write_config: Write, row_judge: RowJudge, value: Any) -> None:
    config = write_config(data={"path": "rows.jsonl"}, expert=section(row_judge, max_refused_rows=value))
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    assert caught.value.key == "expert.max_refused_rows"


@pytest.mark.parametrize("value", [0, 20, 0.0, 0.25])
def test_counts_and_shares_are_read(write_config: Write, row_judge: RowJudge, value: float) -> None:
    config = write_config(data={"path": "rows.jsonl"}, expert=section(row_judge, max_refused_rows=value))
    expert = load_config(config).expert
    assert expert is not None
    assert (expert.max_refused_rows, type(expert.max_refused_rows)) == (value, type(value))
