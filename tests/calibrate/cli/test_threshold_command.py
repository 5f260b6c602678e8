from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from calibrate.cli.app import app
from ctd_guardrail.policy.budget import max_exceedances


def _run(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["threshold", "--scores", str(path), *options])


def _write(path: Path, scores: np.ndarray, column: str = "dv") -> Path:
    lines = [f"{i},{score!r}" for i, score in enumerate(scores.tolist())]
    path.write_text("\n".join([f"id,{column}", *lines]) + "\n")
    return path


@pytest.fixture
def uniform(tmp_path: Path) -> Path:
    return _write(tmp_path / "scores.csv", np.random.default_rng(0).random(1000))


def test_a_thousand_uniform_scores_give_k_84(uniform: Path) -> None:
    result = _run(uniform, "--column", "dv", "--alpha", "0.1", "--delta", "0.05")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["status"] == "certified"
    assert (answer["k"], answer["n"], answer["n_min"]) == (84, 1000, 29)
    assert (answer["alpha"], answer["delta"], answer["guarantee"]) == (0.1, 0.05, "exact")
    assert answer["mean_rate"] == pytest.approx(85 / 1001)
    scores = np.random.default_rng(0).random(1000)
    assert (scores > answer["threshold"]).sum() == 84
    assert result.stdout.count("\n") == 1


def test_too_few_scores_exit_with_3_and_a_null_threshold(tmp_path: Path) -> None:
    result = _run(_write(tmp_path / "few.csv", np.arange(10.0)), "--alpha", "0.1", "--delta", "0.05")
    answer = json.loads(result.stdout)
    assert result.exit_code == 3
    assert (answer["status"], answer["threshold"], answer["k"], answer["n_min"]) == ("infeasible", None, -1, 29)


@pytest.mark.parametrize(
    ("options", "k"),
    [
        (["--guarantee", "simultaneous"], 74),
        (["--guarantee", "expected"], 99),
        (["--guarantee", "next", "--horizon", "1000"], 78),
    ],
)
def test_every_guarantee_can_be_asked_for(uniform: Path, options: list[str], k: int) -> None:
    answer = json.loads(_run(uniform, "--alpha", "0.1", "--delta", "0.05", *options).stdout)
    assert (answer["k"], answer["guarantee"]) == (k, options[1])
    assert answer.get("horizon") == (1000 if "next" in options else None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3,nan", "score is nan"),
        ("3,inf", "score is inf"),
        ("3,-Infinity", "score is -inf"),
        ("3,high", "not a number"),
        ("3,", "not a number"),
        ("3", "1 fields"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_nothing_is_printed(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"id,dv\n1,0.5\n2,0.25\n{row}\n4,0.75\n")
    result = _run(path, "--alpha", "0.1", "--delta", "0.05")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "row 4" in result.stderr
    assert said in result.stderr
    assert "high" not in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id,score\n1,0.5\n", "no column 'dv'"),
        (b"", "no column 'dv'"),
        (b"id,dv\n", "no rows"),
        (b"id,dv\n1,\xff\n", "not a CSV file"),
    ],
)
def test_a_file_that_is_no_table_of_scores_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    result = _run(path, "--alpha", "0.1", "--delta", "0.05")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = _run(tmp_path / "none.csv", "--alpha", "0.1", "--delta", "0.05")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.csv" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--alpha", "1.5", "--delta", "0.05"],
        ["--alpha", "0.1", "--delta", "0"],
        ["--alpha", "0.1", "--delta", "0.05", "--guarantee", "next"],
        ["--alpha", "0.1", "--delta", "0.05", "--horizon", "10"],
        ["--alpha", "0.7", "--delta", "0.05", "--guarantee", "simultaneous"],
        ["--alpha", "0.1", "--delta", "0.05", "--guarantee", "hopeful"],
    ],
)
def test_options_that_make_no_budget_are_refused(uniform: Path, options: list[str]) -> None:
    result = _run(uniform, *options)
    assert (result.exit_code, result.stdout) == (2, "")


def test_blank_lines_quotes_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    rows = "\r\n".join(f'"text, with ""commas"" {i}",{i}' for i in range(40))
    path.write_text(f"\ufefftext, dv\r\n\r\n{rows}\r\n", encoding="utf-8")
    answer = json.loads(_run(path, "--alpha", "0.1", "--delta", "0.05").stdout)
    assert (answer["n"], answer["k"]) == (40, max_exceedances(40, 0.1, 0.05))


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal()},chat-{number}" for number in range(1500) for _ in range(number % 5 + 1)]
    path = tmp_path / "chats.csv"
    path.write_text("d,conversation\n" + "\n".join(rows) + "\n")
    return path


def test_turns_of_conversations_are_certified_together(chats: Path) -> None:
    options = ["--column", "d", "--alpha", "0.1", "--delta", "0.05"]
    answer = json.loads(_run(chats, *options, "--conversation", "conversation").stdout)
    assert (answer["method"], answer["unit"], answer["max_turns"]) == ("betting", "turn", 5)
    assert (answer["n"], answer["conversations"], answer["turns"]) == (1500, 1500, 4500)
    assert answer["mean_rate"] == answer["k"] / 4500
    rows = json.loads(_run(chats, *options).stdout)
    assert (rows["method"], rows["conversations"]) == ("exact binomial", 4500)
    longer = json.loads(_run(chats, *options, "--conversation", "conversation", "--max-turns", "50").stdout)
    assert longer["max_turns"] == 50
    assert answer["threshold"] < longer["threshold"]


def test_a_budget_can_count_calls_per_conversation(chats: Path) -> None:
    options = ["--column", "d", "--conversation", "conversation", "--unit", "conversation", "--delta", "0.05"]
    answer = json.loads(_run(chats, *options, "--alpha", "1.2").stdout)
    assert answer["unit"] == "conversation"
    assert 1.0 < answer["mean_rate"] == answer["k"] / 1500 < 1.2
    refused = _run(chats, *options, "--alpha", "6")
    assert refused.exit_code == 2
    assert "not between 0 and 5" in refused.stderr


def test_the_next_inputs_of_conversations_are_refused(chats: Path) -> None:
    result = _run(
        chats, "--column", "d", "--conversation", "conversation", "--alpha", "0.1", "--delta", "0.05",
        "--guarantee", "next", "--horizon", "100",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "up to 5 turns" in result.stderr
