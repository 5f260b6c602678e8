import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.assembly.prepared import read
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError, PolicyMismatchError
from ctd_guardrail.policy.plan import Budget, Plan, plan
from ctd_guardrail.policy.rule import ThresholdRule, TieBreakingRule
from ctd_guardrail.policy.store import CalibrationScores, read_policy, write_policy
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from ctd_guardrail.text.normalise import NORMALISER


def planned(folder: Path) -> Plan:
    return read(folder).plan


def test_alpha_and_delta_come_from_the_rail_and_else_from_the_policy(make_rail_folder: Callable[..., Path]) -> None:
    stated = planned(make_rail_folder(alpha=0.3, delta=0.2)).certificate
    assert (stated.alpha, stated.delta) == (0.3, 0.2)
    silent = planned(make_rail_folder(alpha=None, delta=None)).certificate
    assert (silent.alpha, silent.delta) == (0.2, 0.1)
    assert stated.threshold < silent.threshold


def test_a_stricter_guarantee_delegates_less(make_rail_folder: Callable[..., Path]) -> None:
    rates = [
        planned(make_rail_folder(**changes)).expected_rate
        for changes in (
            {"guarantee": "expected"},
            {"guarantee": "exact"},
            {"guarantee": "simultaneous"},
        )
    ]
    assert rates == sorted(rates, reverse=True)
    assert planned(make_rail_folder(guarantee="next", horizon=50)).certificate.horizon == 50
    with pytest.raises(ConfigError, match="horizon"):
        planned(make_rail_folder(guarantee="next"))


def test_a_budget_beyond_the_calibration_rows_is_refused(make_rail_folder: Callable[..., Path]) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"200 calibration rows cannot certify alpha = 0\.01") as error:
        planned(make_rail_folder(alpha=0.01))
    assert error.value.alpha_min == pytest.approx(0.0114, abs=1e-4)
    assert error.value.n_min == 230


def relabel(policy: Path, folder: Path, **columns: Any) -> None:
    old = read_policy(policy)
    scores = CalibrationScores(old.calibration.d, old.calibration.p, **columns)
    write_policy(folder, old.manifest.model_dump(exclude={"tensors_sha256"}), old.probe, scores)


@pytest.mark.parametrize("normaliser", [None, "0"])
def test_a_policy_whose_texts_were_read_otherwise_is_refused(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path, normaliser: str | None
) -> None:
    old = read_policy(rail_policy)
    assert old.manifest.normaliser == NORMALISER
    fields = old.manifest.model_dump(exclude={"tensors_sha256"}) | {"normaliser": normaliser}
    write_policy(tmp_path / "old", fields, old.probe, old.calibration)
    with pytest.raises(PolicyMismatchError, match="text normaliser"):
        planned(make_rail_folder(policy=str(tmp_path / "old")))


def test_a_criterion_keeps_a_harmful_expert_out(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    labels = (np.arange(200) % 2).astype(float)
    relabel(rail_policy, tmp_path / "harmful", label=labels, expert=1 - labels)
    relabel(rail_policy, tmp_path / "perfect", label=labels, expert=labels)
    budget = planned(make_rail_folder(policy=str(tmp_path / "perfect")))
    for criterion in ("accuracy", "brier", "cost"):
        harmful = planned(make_rail_folder(policy=str(tmp_path / "harmful"), criterion=criterion))
        perfect = planned(make_rail_folder(policy=str(tmp_path / "perfect"), criterion=criterion))
        assert harmful.expected_rate < perfect.expected_rate <= budget.expected_rate
        assert harmful.rule.threshold > budget.rule.threshold


def test_rows_that_the_expert_refused_choose_nothing_and_count_in_the_rate(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path
) -> None:
    policy = read_policy(rail_policy)
    n = policy.calibration.d.size
    label = (np.arange(n) % 2).astype(np.float64)
    # The expert is right about every row, and refuses the ones that d ranks highest.
    expert = np.where(policy.calibration.d > 0.55, np.nan, label)
    assert 0 < np.isnan(expert).sum() < n / 10
    relabel(rail_policy, tmp_path / "refusing", expert=expert, label=label)
    found = planned(make_rail_folder(policy=str(tmp_path / "refusing"), criterion="accuracy"))
    assert found.rule.threshold < 0.55
    assert found.expected_rate == (policy.calibration.d > found.rule.threshold).mean()
    relabel(rail_policy, tmp_path / "mute", expert=np.full(n, np.nan), label=label)
    with pytest.raises(ConfigError, match="needs labelled calibration rows"):
        planned(make_rail_folder(policy=str(tmp_path / "mute"), criterion="accuracy"))


def test_a_criterion_without_labels_is_refused(make_rail_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="needs labelled calibration rows"):
        planned(make_rail_folder(criterion="accuracy"))


def test_ties_are_drawn_where_a_key_is_named(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_rail_folder(tie_key_env="TIE_KEY")
    with pytest.raises(ConfigError, match="0 bytes, not 16 to 64"):
        planned(folder)
    monkeypatch.setenv("TIE_KEY", "a secret of some length")
    assert isinstance(planned(folder).rule, TieBreakingRule)
    with pytest.raises(ConfigError, match="criterion: budget"):
        planned(make_rail_folder(tie_key_env="TIE_KEY", criterion="accuracy"))


@pytest.mark.parametrize("change", [{"alpha": 0.3}, {"delta": 0.2}, {"guarantee": "expected"}, {"criterion": "brier"}])
def test_settings_that_would_void_a_performance_certificate_are_refused(
    make_rail_folder: Callable[..., Path], rail_policy: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    old = read_policy(rail_policy)
    record = {"risks": [{"metric": "fnr", "max": 0.1}], "threshold": 0.55, "band": 0.05}
    fields = old.manifest.model_dump(exclude={"tensors_sha256"}) | {"performance": record}
    write_policy(tmp_path / "performing", fields, old.probe, old.calibration)
    silent = {"policy": str(tmp_path / "performing"), "alpha": None, "delta": None}
    plan_ = planned(make_rail_folder(**silent))
    assert plan_.rule == ThresholdRule(0.55)
    assert plan_.expected_rate == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="certifies its risks"):
        planned(make_rail_folder(**silent | change))


def test_what_is_expected_is_in_the_unit_of_alpha(rail_policy: Path) -> None:
    conversation = np.repeat(np.arange(400), 3)
    scores = TurnScores.of(np.random.default_rng(0).normal(size=1200), conversation)
    policy = dataclasses.replace(read_policy(rail_policy), turns=scores)
    per_turn = plan(policy, Budget(alpha=0.2))
    per_conversation = plan(policy, Budget(alpha=0.5, unit=BudgetUnit.CONVERSATION))
    for found, units in ((per_turn, 1200), (per_conversation, 400)):
        assert found.expected_rate == (scores.d > found.rule.threshold).sum() / units
        assert 0.7 < found.expected_rate / found.alpha < 1.0
    assert per_turn.expectation == f"{per_turn.expected_rate:.1%} expected"
    assert per_conversation.expectation == f"{per_conversation.expected_rate:.4g} expected"


def test_another_unit_than_the_policy_s_needs_its_own_alpha(rail_policy: Path) -> None:
    conversation = np.repeat(np.arange(400), 3)
    scores = TurnScores.of(np.random.default_rng(0).normal(size=1200), conversation)
    policy = dataclasses.replace(read_policy(rail_policy), turns=scores)
    with pytest.raises(ConfigError, match="is per turn, and not per conversation") as caught:
        plan(policy, Budget(unit=BudgetUnit.CONVERSATION, section="custom_data.ctd"))
    assert caught.value.key == "custom_data.ctd.unit"
    assert plan(policy, Budget(unit=BudgetUnit.TURN)) == plan(policy, Budget())
