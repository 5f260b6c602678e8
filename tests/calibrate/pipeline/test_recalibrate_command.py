from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from calibrate.cli.app import app
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.budget import Guarantee, max_exceedances
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import CalibrationScores, read_policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.policy.unreadable import Unreadable
from ctd_guardrail.runtime.lock import LOCK_FILE
from tests.support.artefacts import edit
from tests.support.policies import write_plain_policy
from tests.support.writers import holding

N = 400


def _scores(path: Path, n: int, seed: int) -> Path:
    values = np.random.default_rng(seed).normal(loc=1.0, size=n)
    rows = [f"{value!r},c{number}" for number, value in enumerate(values.tolist())]
    path.write_text("dv,conversation\n" + "\n".join(rows) + "\n")
    return path


def _turns(path: Path, conversations: int, *, loc: float = 1.0, seed: int = 5) -> Path:
    """Write conversations of one to six turns. A longer file of the same seed begins with the shorter one."""
    rng = np.random.default_rng(seed)
    rows = ["dv,conversation"]
    for number in range(conversations):
        shared = rng.normal(loc)
        rows += [f"{shared + rng.normal() / 2!r},c{number}" for _ in range(int(rng.integers(1, 7)))]
    path.write_text("\n".join(rows) + "\n")
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
    path.write_text("dv,conversation\n0.5,a\nnan,b\n")
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


class TestConversations:
    def test_turns_of_one_conversation_are_certified_together(self, policy: Path, tmp_path: Path) -> None:
        result, answer = _run(policy, _turns(tmp_path / "t.csv", 2000))
        assert result.exit_code == 0
        assert (answer["method"], answer["conversations"], answer["max_turns"]) == ("betting", 2000, 6)
        assert 0.08 < answer["mean_rate"] < 0.1
        again = read_policy(policy)
        assert (again.scores.conversations, again.scores.turns) == (2000, answer["turns"])
        planned = plan(again, Budget())
        assert planned.rule.threshold == answer["threshold"]
        assert planned.expected_rate == again.scores.rate_above(answer["threshold"])

    def test_rows_without_conversations_are_refused_unless_they_are_independent(
        self, policy: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "t.csv"
        path.write_text("dv\n" + "\n".join(map(str, range(2000))) + "\n")
        result, _ = _run(policy, path)
        assert result.exit_code == 2
        assert "--independent" in result.stderr
        _, answer = _run(policy, path, "--independent")
        assert answer["k"] == max_exceedances(2000, 0.1, spent_delta(0.05, 1))
        assert (answer["method"], answer["conversations"]) == ("exact binomial", 2000)

    def test_a_row_without_an_identifier_is_named(self, policy: Path, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_text("dv,conversation\n0.5,a\n0.6,\n")
        result, _ = _run(policy, path)
        assert result.exit_code == 2
        assert "row 3" in result.stderr

    def test_the_column_can_have_another_name(self, policy: Path, tmp_path: Path) -> None:
        path = _turns(tmp_path / "t.csv", 2000)
        path.write_text(path.read_text().replace("conversation", "thread", 1))
        assert _run(policy, path)[0].exit_code == 2
        assert _run(policy, path, "--conversation", "thread")[1]["conversations"] == 2000

    def test_turns_that_went_to_the_expert_unread_count_at_every_threshold(self, policy: Path, tmp_path: Path) -> None:
        _, plain = _run(policy, path := _turns(tmp_path / "t.csv", 2000))
        path.write_text(path.read_text() + "expert,c1\nexpert,other\n" * 50)
        _, answer = _run(policy, path)
        assert (answer["always"], answer["conversations"]) == (100, 2001)
        assert answer["threshold"] > plain["threshold"]
        certificate = plan(read_policy(policy), Budget()).certificate
        assert (certificate.always, certificate.threshold) == (100, answer["threshold"])


class TestDefaults:
    """alpha and delta of a recalibration are those of the rail from then on."""

    def test_the_rail_takes_alpha_and_delta_of_the_last_recalibration(self, policy: Path, tmp_path: Path) -> None:
        _, answer = _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1), "--alpha", "0.3", "--delta", "0.2")
        planned = plan(read_policy(policy), Budget())
        assert (planned.alpha, planned.rule.threshold) == (0.3, answer["threshold"])
        assert planned.certificate.delta == pytest.approx(spent_delta(0.2, 1))
        _, answer = _run(policy, _scores(tmp_path / "2.csv", 2000, seed=2))
        assert (answer["alpha"], answer["delta"]) == (0.3, 0.2)

    def test_a_setting_of_the_rail_still_wins(self, policy: Path, tmp_path: Path) -> None:
        _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1), "--alpha", "0.3")
        assert plan(read_policy(policy), Budget(alpha=0.1)).alpha == 0.1


class TestUnreadTurns:
    """Turns that go to the expert unread are calls, so the scores must hold them."""

    UNREAD = Budget(unreadable=frozenset({Unreadable.OVERLONG}), section="custom_data.ctd")

    def test_scores_that_may_lack_them_are_refused_where_the_expert_gets_them(
        self, policy: Path, tmp_path: Path
    ) -> None:
        plan(read_policy(policy), self.UNREAD)  # calibration states them
        _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1))
        plan(read_policy(policy), Budget())
        with pytest.raises(ConfigError, match="do not state the turns that go to the expert unread") as caught:
            plan(read_policy(policy), self.UNREAD)
        assert caught.value.key == "custom_data.ctd.on_overlong"

    def test_scores_that_have_some_or_are_said_to_hold_them_run(self, policy: Path, tmp_path: Path) -> None:
        _run(policy, _scores(tmp_path / "1.csv", 2000, seed=1), "--with-unread")
        assert plan(read_policy(policy), self.UNREAD).certificate.always == 0
        file = _scores(tmp_path / "2.csv", 2000, seed=2)
        file.write_text(file.read_text() + "expert,u0\nexpert,u1\n")
        _run(policy, file)
        assert plan(read_policy(policy), self.UNREAD).certificate.always == 2


class TestRisks:
    """A policy that certifies risks has its own threshold, which new traffic may put over the budget."""

    @pytest.fixture
    def structured(self, tmp_path: Path) -> Path:
        folder = tmp_path / "structured"
        d = np.sort(np.random.default_rng(0).normal(size=N))
        scores = CalibrationScores.from_rows(d=d, p=np.full(N, 0.5), expert=np.full(N, 0.5), label=np.ones(N))
        calibration = {"rows": N, "alpha": 0.2, "delta": 0.05, "seed": 0}
        performance = {"risks": [{"metric": "error", "max": 0.2}], "threshold": float(d[-60]), "band": 0.0}
        write_plain_policy(folder, rows=N, scores=scores, calibration=calibration, performance=performance)
        return folder

    def test_a_recalibration_is_refused_without_the_flag(self, structured: Path, tmp_path: Path) -> None:
        before = (structured / "policy.json").read_bytes()
        result, _ = _run(structured, _scores(tmp_path / "1.csv", 2000, seed=1))
        assert result.exit_code == 2
        assert "--drop-risks" in result.stderr
        assert (structured / "policy.json").read_bytes() == before

    def test_with_it_the_budget_holds_and_the_risks_are_void(self, structured: Path, tmp_path: Path) -> None:
        _, answer = _run(structured, _scores(tmp_path / "1.csv", 2000, seed=1), "--drop-risks")
        again = read_policy(structured)
        assert again.manifest.performance is None
        assert again.manifest.recalibrations[-1].drops_risks
        planned = plan(again, Budget())
        assert planned.rule.threshold == answer["threshold"] == planned.certificate.threshold
        assert planned.expected_rate < 0.2

    def test_a_policy_that_abstains_is_refused_because_its_band_would_open(
        self, structured: Path, tmp_path: Path
    ) -> None:
        policy = read_policy(structured)
        assert policy.manifest.performance is not None
        banded = policy.manifest.performance.model_copy(update={"band": 0.1})
        fields = policy.manifest.model_copy(update={"performance": banded}).model_dump(exclude={"tensors_sha256"})
        write_policy(structured, fields, policy.probe, policy.calibration)
        result, _ = _run(structured, _scores(tmp_path / "1.csv", 2000, seed=1), "--drop-risks")
        assert result.exit_code == 2
        assert "abstains in a band" in result.stderr
        assert read_policy(structured).manifest.performance == banded

    def test_a_threshold_below_the_certified_one_never_runs(self, structured: Path) -> None:
        """As a policy that an earlier version recalibrated has it: 47.9% of the turns for a budget of 20%."""
        policy = read_policy(structured)
        shifted = TurnScores.of(np.random.default_rng(1).normal(loc=1.0, size=2000))
        record = {"file": "t", "sha256": "0", "rows": 2000, "alpha": 0.2, "delta": 0.05, "delta_spent": 0.03}
        record |= {"k": 300, "threshold": 2.0, "created_at": "2026-01-01T00:00:00Z"}
        manifest = type(policy.manifest).model_validate(policy.manifest.model_dump() | {"recalibrations": [record]})
        assert policy.manifest.performance is not None
        threshold = policy.manifest.performance.threshold
        assert shifted.rate_above(threshold or 0.0) > 0.4
        with pytest.raises(ConfigError, match="lies below the certified one") as error:
            plan(replace(policy, manifest=manifest, turns=shifted), Budget())
        assert f"{threshold:.6g}" in str(error.value)


class TestGrowing:
    """A file that grows is certified again and again at one delta."""

    def test_later_looks_spend_no_delta_and_lower_the_threshold(self, policy: Path, tmp_path: Path) -> None:
        answers = [_run(policy, _turns(tmp_path / f"{n}.csv", n), "--growing")[1] for n in (500, 1000, 2000)]
        assert [answer["look"] for answer in answers] == [1, 1, 1]
        assert {answer["delta_spent"] for answer in answers} == {spent_delta(0.05, 1)}
        thresholds = [answer["threshold"] for answer in answers]
        assert thresholds == sorted(thresholds, reverse=True)
        assert answers[-1]["mean_rate"] > answers[0]["mean_rate"]
        again = read_policy(policy)
        assert [record.continues for record in again.manifest.recalibrations] == [False, True, True]
        planned = plan(again, Budget())
        assert planned.rule.threshold == thresholds[-1]
        # What does not grow is another look.
        assert _run(policy, _turns(tmp_path / "other.csv", 1000, seed=6))[1]["look"] == 2

    def test_another_beginning_is_refused(self, policy: Path, tmp_path: Path) -> None:
        _run(policy, _turns(tmp_path / "1.csv", 500), "--growing")
        result, _ = _run(policy, _turns(tmp_path / "2.csv", 1000, seed=6), "--growing")
        assert result.exit_code == 2
        assert "does not begin with" in result.stderr

    def test_a_conversation_that_goes_on_is_refused(self, policy: Path, tmp_path: Path) -> None:
        path = _turns(tmp_path / "1.csv", 500)
        _run(policy, path, "--growing")
        longer = tmp_path / "2.csv"
        longer.write_text(path.read_text() + "0.5,new\n0.7,c3\n")
        result, _ = _run(policy, longer, "--growing")
        assert result.exit_code == 2
        assert f"row {len(longer.read_text().splitlines())}" in result.stderr

    def test_alpha_stays(self, policy: Path, tmp_path: Path) -> None:
        _run(policy, _turns(tmp_path / "1.csv", 500), "--growing")
        result, _ = _run(policy, _turns(tmp_path / "2.csv", 1000), "--growing", "--alpha", "0.2")
        assert result.exit_code == 2
        assert "that of the growing scores" in result.stderr

    def test_a_conversation_longer_than_those_of_the_first_look_is_refused(self, policy: Path, tmp_path: Path) -> None:
        path = _turns(tmp_path / "1.csv", 500)
        _run(policy, path, "--growing")
        longer = tmp_path / "2.csv"
        longer.write_text(path.read_text() + "0.5,new\n" * 30)
        result, _ = _run(policy, longer, "--growing")
        assert result.exit_code == 2
        assert "max_turns" in result.stderr

    def test_other_guarantees_are_refused_with_what_to_do(self, policy: Path, tmp_path: Path) -> None:
        _run(policy, _turns(tmp_path / "1.csv", 500), "--growing")
        with pytest.raises(ConfigError) as error:
            plan(read_policy(policy), Budget(guarantee=Guarantee.EXPECTED))
        assert "--growing" in error.value.hint
