"""The three functions that users import: their examples run, the commands call them, importing them is cheap."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import calibrate
from calibrate._extra import needs_extra
from calibrate.cli.app import app
from calibrate.cli.evaluate import evaluate
from calibrate.cli.run import run
from calibrate.report.page import REPORT_FILE
from ctd_guardrail.errors import ConfigError, DependencyError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workspace(make_rows: Callable[..., Any], tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples expect it: CALIBRATE.yml and prompts.jsonl."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    (folder / "CALIBRATE.yml").write_text(
        f"base: {{model: {tiny_bert}, layers: 1, site: residual}}\n"
        "data: {path: prompts.jsonl, expert_column: expert}\nbudget: {alpha: 0.2, delta: 0.1}\noutput: ./policy\n"
    )
    return folder


# In this order: the example of `study` measures the policy that the example of `calibrate` made.
@pytest.mark.parametrize("name", ["calibrate", "study", "train_probes"])
def test_the_example_in_the_docstring_runs(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    door = getattr(calibrate, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(door, name, globs=dict(door.__globals__))
    assert example.examples, "the docstring has no example"
    assert doctest.DocTestRunner().run(example).failed == 0
    for section in ("Args:", "Raises:", "Example:"):
        assert section in (door.__doc__ or "")


def test_the_doors_are_all_there_is() -> None:
    assert set(calibrate.__all__) == {"calibrate", "study", "train_probes"}
    assert dir(calibrate) == sorted(calibrate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        calibrate.nothing  # noqa: B018


def test_every_other_room_says_that_it_is_internal() -> None:
    rooms = {path.parent.name: path.read_text(encoding="utf-8") for path in (ROOT / "calibrate").glob("*/__init__.py")}
    assert len(rooms) > 10
    # A door opens into `calibrate.train`.
    assert [name for name, text in rooms.items() if not text.startswith('"""Internal. ')] == ["train"]


def test_importing_the_doors_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'scipy', 'sklearn', 'transformers', 'pydantic', 'rich'}"
    code = f"import sys; from calibrate import calibrate, study; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_the_commands_call_the_doors(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def record(name: str) -> Callable[..., None]:
        def door(*arguments: Any, **options: Any) -> None:
            called.append((name, arguments, options))
            raise ConfigError("that is all")

        return door

    monkeypatch.setitem(run.__globals__, "calibrate", record("calibrate"))
    monkeypatch.setitem(evaluate.__globals__, "study", record("study"))
    config, policy, data = workspace / "CALIBRATE.yml", workspace / "policy", workspace / "prompts.jsonl"
    assert CliRunner().invoke(app, ["run", str(config), "--ask-refused-again"]).exit_code == 2
    options = ["--data", str(data), "--to", str(workspace / "out"), "--show-text"]
    assert CliRunner().invoke(app, ["evaluate", str(policy), *options]).exit_code == 2
    (one, arguments, given), (other, judged, chosen) = called
    assert (one, arguments, given["ask_refused_again"]) == ("calibrate", (config,), True)
    assert (other, judged) == ("study", (policy, [data]))
    assert (chosen["to"], chosen["show_text"], chosen["device"]) == (workspace / "out", True, "auto")


def test_a_calibration_writes_its_documents_and_a_study_only_what_it_is_asked_for(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    result = calibrate.calibrate("CALIBRATE.yml")
    assert (result.output / REPORT_FILE).is_file()
    before = {path for path in workspace.rglob("*") if path.is_file()}
    made = calibrate.study(result.output, ["prompts.jsonl"], device="cpu")
    assert {path for path in workspace.rglob("*") if path.is_file()} == before
    assert made.study.rows == result.grid.rows.label.size
    again = calibrate.study("policy", ["prompts.jsonl"], to="evaluation", device="cpu")
    assert json.loads((workspace / "evaluation" / "study.json").read_text()) == again.to_dict() == made.to_dict()


def test_two_sources_of_expert_scores_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than one source"):
        calibrate.study("policy", [], expert_column="expert", expert_config="expert.yml")


def test_a_missing_package_of_an_extra_is_named() -> None:
    problem = "training needs scikit-learn, which is not installed"
    with pytest.raises(DependencyError, match=problem) as caught, needs_extra("training"):
        raise ModuleNotFoundError("no", name="sklearn.linear_model")
    assert "ctd-guardrail[calibrate]" in str(caught.value.hint)
    with pytest.raises(ModuleNotFoundError, match="no"), needs_extra("training"):
        raise ModuleNotFoundError("no", name="a_typo_of_ours")
