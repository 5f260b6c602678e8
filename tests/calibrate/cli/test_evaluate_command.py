"""`ctd-calibrate evaluate`, from a policy to its files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.file import load_config
from calibrate.pipeline.run import PipelineResult, run
from ctd_guardrail.policy.store import read_policy

Row = dict[str, Any]
Make = Callable[..., list[Row]]
Write = Callable[..., Path]

TABLES = {
    "cascade", "composition", "failures", "faic", "fixes", "gain", "groups", "merges", "reliability", "sensitivity",
    "splits", "tests",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """A calibrated policy, and its evaluation on the files of the calibration."""

    folder: Path
    run: PipelineResult
    out: Path
    answer: dict[str, Any]

    @property
    def data(self) -> Path:
        return self.folder / "rows.jsonl"


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"], catch_exceptions=False)


@pytest.fixture(scope="module")
def world(make_rows: Make, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("evaluated")
    rows = make_rows()
    for number, row in enumerate(rows):
        row["group"] = "odd" if number % 2 else "even"
    # Copies: a cluster has to stay together, and counts once.
    rows += [row | {"id": f"copy-{row['id']}", "text": row["text"].upper()} for row in rows[:60]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "base": {"model": str(tiny_bert), "layers": 1, "site": "residual", "device": "cpu"},
        "data": {"path": "rows.jsonl", "expert_column": "expert"},
        "budget": {"alpha": 0.2, "delta": 0.1},
        "output": "./policy",
    }
    (folder / "CALIBRATE.yml").write_text(yaml.safe_dump(content))
    calibrated = run(load_config(folder / "CALIBRATE.yml"), console=Console(quiet=True))
    recipe = {"configuration": {"prices": {"expert_call": 0.25, "currency": "EUR"}}}
    (calibrated.output / "reproducibility.json").write_text(json.dumps(recipe))
    out = folder / "out"
    result = _invoke(calibrated.output, "--data", folder / "rows.jsonl", "--to", out, "--json")
    assert result.exit_code == 0, result.stderr
    return World(folder, calibrated, out, json.loads(result.stdout))


def test_on_the_files_of_the_calibration_it_judges_the_test_rows_as_the_calibration_did(world: World) -> None:
    answer = world.answer
    assert answer["rows"] == world.run.grid.rows.label.size
    assert answer["left_out"]["used"] + answer["left_out"]["dependent"] + answer["rows"] == 460
    assert answer["left_out"]["dependent"] > 0
    assert answer["is_of_one_law"] is True
    assert answer["expert"] == answer["policy_expert"] == "recorded:expert"
    found = {(row["method"], row["alpha"]): row for row in answer["tables"]["cascade"]["rows"]}
    for cell in world.run.policy.manifest.evaluation["cells"]:
        row = found[cell["method"], cell["alpha"]]
        for figure in ("rate", "auroc", "accuracy", "brier", "missed_harm"):
            assert row[figure] == pytest.approx(cell[figure], abs=1e-6)


def test_numbers_stand_beside_every_plot(world: World) -> None:
    study = json.loads((world.out / "study.json").read_text())
    assert set(study["tables"]) == TABLES
    assert study == {key: value for key, value in world.answer.items() if key != "report"}
    for name, table in study["tables"].items():
        with (world.out / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        wanted = [{key: "" if value is None else str(value) for key, value in row.items()} for row in table["rows"]]
        assert rows == wanted
    assert Path(world.answer["report"]) == world.out / "report.html"
    assert "EUR" in (world.out / "report.html").read_text()
    plots = sorted(world.out.glob("*.svg"))
    assert len(plots) >= 15
    for plot in plots:
        assert ET.parse(plot).getroot().get("role") == "img"  # noqa: S314 - written by ourselves


def test_no_file_holds_a_text_of_the_data(world: World) -> None:
    texts = [json.loads(line)["text"] for line in world.data.read_text().splitlines()]
    written = "".join(path.read_text() for path in world.out.iterdir())
    assert not [text for text in texts if text in written]


def test_again_it_writes_the_same_bytes_and_texts_only_because_they_are_asked_for(world: World) -> None:
    again = world.folder / "again"
    result = _invoke(world.run.output, "--data", world.data, "--to", again, "--show-text")
    assert result.exit_code == 0, result.stderr
    for words in ("uncertainty", "FAIC", "recorded:expert", str(again / "report.html")):
        assert words in result.stdout
    for path in world.out.iterdir():
        if path.suffix != ".html":
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    texts = [json.loads(line)["text"] for line in world.data.read_text().splitlines()]
    failures = [json.loads(line) for line in (again / "failures.jsonl").read_text().splitlines()]
    assert failures
    for failure in failures:
        line = int(failure["row"].removeprefix("rows.jsonl:"))
        assert failure["text"] == texts[line - 1]


def test_rows_that_the_policy_was_made_from_are_refused(world: World, tmp_path: Path) -> None:
    lines = world.data.read_text().splitlines()
    used = [lines[row] for row in (*world.run.split.train, *world.run.split.calibration)]
    (tmp_path / "used.jsonl").write_text("\n".join(used))
    result = _invoke(world.run.output, "--data", tmp_path / "used.jsonl", "--to", tmp_path / "out")
    assert result.exit_code == 2
    assert f"0 of {len(used)} rows are left to test the policy" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_policy_that_keeps_no_digests_is_refused(world: World, rail_policy: Path, tmp_path: Path) -> None:
    result = _invoke(rail_policy, "--data", world.data, "--to", tmp_path / "out")
    assert result.exit_code == 2
    assert "does not record its own rows" in result.stderr


def test_other_data_and_another_expert(
    world: World, make_rows: Make, write_rows: Write, judge: Any, tmp_path: Path
) -> None:
    lines = world.data.read_text().splitlines()
    other = make_rows(200, seed=9)
    for row, used in zip(other, world.run.split.train[:5].tolist(), strict=False):
        row["text"] = json.loads(lines[used])["text"].upper()
    data = write_rows(other, "other.jsonl")
    section = {"type": "openai", "base_url": judge.base_url, "model": "judge"}
    (tmp_path / "expert.yml").write_text(yaml.safe_dump({"expert": section}))
    options = ("--expert-config", tmp_path / "expert.yml", "--cache", tmp_path / "cache", "--json")
    result = _invoke(world.run.output, "--data", data, "--to", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["left_out"] == {"used": 5, "dependent": 0, "unusable": 0, "refused": 0}
    assert answer["is_of_one_law"] is False
    assert judge.calls == answer["rows"] == 195
    assert answer["policy_expert"] == "recorded:expert" != answer["expert"]
    # Half of the rows calibrate in each split: those of the policy may follow another law.
    assert {row["calibration_rows"] for row in answer["tables"]["splits"]["rows"]} == {97}


def test_a_recalibrated_policy_still_knows_its_rows(world: World, tmp_path: Path) -> None:
    policy = shutil.copytree(world.run.output, tmp_path / "policy")
    scores = tmp_path / "traffic.csv"
    scores.write_text("dv\n" + "\n".join(str(i / 500) for i in range(500)))
    options = ["--policy", str(policy), "--scores", str(scores), "--independent"]
    assert CliRunner().invoke(app, ["recalibrate", *options]).exit_code == 0
    before, after = (read_policy(folder).used_rows for folder in (world.run.output, policy))
    assert before is not None
    lines = world.data.read_text().splitlines()
    used = (*world.run.split.train, *world.run.split.calibration)
    # Copies in other letters share a digest.
    assert before.size == len({json.loads(lines[row])["text"].upper() for row in used}) < len(used)
    assert np.array_equal(before, after)


def test_two_sources_of_expert_scores_are_refused(world: World, tmp_path: Path) -> None:
    options = ("--expert-column", "expert", "--expert-config", tmp_path / "expert.yml")
    result = _invoke(world.run.output, "--data", world.data, "--to", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "more than one source" in result.stderr
