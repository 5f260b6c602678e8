from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from calibrate.cli.app import app
from ctd_guardrail.policy.budget import max_exceedances
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import CalibrationScores, read_policy
from ctd_guardrail.runtime.lock import LOCK_FILE
from tests.support.artefacts import edit
from tests.support.policies import write_plain_policy
from tests.support.writers import holding

N = 400


def _scores(path: Path, n: int, seed: int) -> Path:
    values = np.random.default_rng(seed).normal(loc=1.0, size=n)
    path.write_text("dv\n" + "\n".join(map(repr, values.tolist())) + "\n")
    return path


def _run(policy: Path, scores: Path, *options: str) -> tuple[Result, dict[str, Any]]:
    result = CliRunner().invoke(app, ["recalibrate", "--policy", str(policy), "--scores", str(scores), *options])
    return result, json.loads(result.stdout) if result.stdout else {}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    rng = np.random.default_rng(0)
    scores = CalibrationScores.from_rows(d=rng.normal(size=N), p=rng.random(N), expert=rng.random(N), label=np.ones(N))
    calibration = {"rows": N, "alpha": 0.1, "delta": 0.05, "seed": 0}
    write_plain_policy(folder, rows=N, scores=scores, expert="judge", calibration=calibration)
    return folder


def test_the_new_certificate_comes_from_the_traffic_and_the_old_policy_is_kept(policy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in policy.iterdir() if path.name != LOCK_FILE}
    result, answer = _run(policy, _scores(tmp_path / "traffic.csv", 2000, seed=1))
    assert result.exit_code == 0
    assert answer["k"] == max_exceedances(2000, 0.1, spent_delta(0.05, 1))
    assert answer["previous"]["k"] == max_exceedances(N, 0.1, 0.05)
    assert answer["threshold"] > answer["previous"]["threshold"]
    assert (answer["look"], answer["delta"]) == (1, 0.05)
    assert answer["delta_spent"] == pytest.approx(spent_delta(0.05, 1))

    again = read_policy(policy)
    assert again.scores.turns == 2000
    assert again.calibration.d.size == N
    assert np.array_equal(again.probe["0.weight"], np.ones((4, 3), np.float32))
    assert {path.name: path.read_bytes() for path in Path(answer["kept"]).iterdir()} == before


def test_every_look_is_recorded_and_costs_more(policy: Path, tmp_path: Path) -> None:
    ks = []
    for look in (1, 2, 3):
        _, answer = _run(policy, _scores(tmp_path / f"{look}.csv", 2000, seed=look))
        assert answer["look"] == look
        ks.append(answer["k"])
    records = read_policy(policy).manifest.recalibrations
    assert [record.k for record in records] == ks == sorted(ks, reverse=True)
    assert sum(record.delta_spent for record in records) < 0.05
    assert [record.file for record in records] == ["1.csv", "2.csv", "3.csv"]
    assert sorted(path.name for path in (policy / "history").iterdir()) == ["0000", "0001", "0002"]
    assert read_policy(policy / "history" / "0002").manifest.recalibrations == records[:2]


def test_too_few_scores_change_and_cost_nothing(policy: Path, tmp_path: Path) -> None:
    before = (policy / "policy.json").read_bytes()
    result, answer = _run(policy, _scores(tmp_path / "few.csv", 20, seed=1))
    assert (result.exit_code, answer["status"], answer["kept"]) == (3, "infeasible", None)
    assert (policy / "policy.json").read_bytes() == before
    assert not (policy / "history").exists()
    _, answer = _run(policy, _scores(tmp_path / "traffic.csv", 2000, seed=1))
    assert answer["look"] == 1


def test_scores_that_are_in_force_are_refused(policy: Path, tmp_path: Path) -> None:
    scores = _scores(tmp_path / "traffic.csv", 2000, seed=1)
    _run(policy, scores)
    result, _ = _run(policy, scores)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the policy already uses these scores" in result.stderr


def test_delta_cannot_be_raised_halfway(policy: Path, tmp_path: Path) -> None:
    _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1), "--delta", "0.02")
    result, _ = _run(policy, _scores(tmp_path / "2.csv", 2000, seed=2), "--delta", "0.2")
    assert result.exit_code == 2
    assert "delta" in result.stderr
    _, answer = _run(policy, _scores(tmp_path / "2.csv", 2000, seed=2), "--alpha", "0.2")
    assert (answer["delta"], answer["alpha"]) == (0.02, 0.2)


def test_a_folder_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    result, _ = _run(tmp_path / "none", _scores(tmp_path / "traffic.csv", 100, seed=1))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "policy.json" in result.stderr


def test_a_bad_row_is_named_and_the_policy_unchanged(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "traffic.csv"
    path.write_text("dv\n0.5\nnan\n")
    result, _ = _run(policy, path)
    assert result.exit_code == 2
    assert "row 3" in result.stderr
    assert not (policy / "history").exists()


def test_tampered_traffic_scores_are_refused(policy: Path, tmp_path: Path) -> None:
    _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1))
    edit(policy, recalibrations=[])  # and hashed again
    result, _ = _run(policy, _scores(tmp_path / "2.csv", 2000, seed=2))
    assert result.exit_code == 2
    assert "turns.d" in result.stderr


def test_a_policy_that_another_process_writes_is_left_alone(policy: Path, tmp_path: Path) -> None:
    before = (policy / "policy.json").read_bytes()
    scores = _scores(tmp_path / "traffic.csv", 2000, seed=1)
    with holding(policy):
        result, _ = _run(policy, scores)
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(policy / LOCK_FILE) in result.stderr
    assert "Wait until it has ended" in result.stderr
    assert (policy / "policy.json").read_bytes() == before
    assert not (policy / "history").exists()
    assert _run(policy, scores)[0].exit_code == 0
