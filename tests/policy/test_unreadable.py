"""Unreadable turns are stored apart, and paid out of alpha only if the rail sends them to the expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from ctd_guardrail.assembly.budget import budget_of
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError, PolicyFormatError
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.store import CalibrationScores, Policy, read_policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.policy.unreadable import Unreadable, UnreadableTurns
from tests.policy.test_store import PROBE, manifest
from tests.support.artefacts import retensor

N = 500
OVERLONG, NONTEXT = Unreadable.OVERLONG, Unreadable.NONTEXT


def _policy(folder: Path, *, overlong: int, nontext: int) -> Policy:
    """A policy of single turns, and conversations of which no turn is readable."""
    d = np.sort(np.random.default_rng(0).normal(size=N))
    unreadable = UnreadableTurns(N + np.arange(overlong + nontext), np.arange(overlong + nontext) < overlong)
    fields = manifest(calibration={"rows": N, "alpha": 0.1, "delta": 0.05, "seed": 0})
    return write_policy(folder, fields, PROBE, CalibrationScores(d, d), unreadable=unreadable)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = _policy(tmp_path, overlong=3, nontext=2).unreadable
    read = read_policy(tmp_path).unreadable
    assert written is not None
    assert read is not None
    np.testing.assert_array_equal(read.conversation, written.conversation)
    np.testing.assert_array_equal(read.is_overlong, written.is_overlong)
    assert (len(read), read.count(OVERLONG), read.count(NONTEXT)) == (5, 3, 2)


@pytest.mark.parametrize(
    "tensors",
    [
        {"unreadable.is_overlong": np.ones(4, dtype=np.bool_)},
        {"unreadable.is_overlong": np.ones(5)},
        {"unreadable.conversation": np.full(5, -1)},
        {"unreadable.conversation": np.ones(5)},
    ],
)
def test_tampered_turns_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    _policy(tmp_path, overlong=3, nontext=2)
    retensor(tmp_path, **tensors)
    with pytest.raises(PolicyFormatError, match="do not name turns"):
        read_policy(tmp_path)


def test_turns_that_go_to_the_expert_unread_are_paid_out_of_alpha(tmp_path: Path) -> None:
    policy = _policy(tmp_path, overlong=10, nontext=5)
    blocked = plan(policy, Budget())
    assert blocked.rule.threshold == certify(policy.calibration.d, 0.1, 0.05).threshold
    thresholds = [blocked.rule.threshold]
    for causes, count in (({NONTEXT}, 5), ({OVERLONG}, 10), ({OVERLONG, NONTEXT}, 15)):
        planned = plan(policy, Budget(unreadable=frozenset(causes)))
        thresholds.append(planned.rule.threshold)
        # They are among the k turns that may reach the expert, so they leave fewer to the readable ones.
        assert planned.certificate.turns == N + count
        above = int((policy.calibration.d > planned.rule.threshold).sum())
        assert above == planned.certificate.k - count
    assert thresholds == sorted(set(thresholds))


def test_more_of_them_than_the_budget_allows_are_infeasible(tmp_path: Path) -> None:
    policy = _policy(tmp_path, overlong=200, nontext=0)
    plan(policy, Budget(unreadable=frozenset({NONTEXT})))
    with pytest.raises(InfeasibleBudgetError):
        plan(policy, Budget(unreadable=frozenset({OVERLONG})))


def test_a_tie_key_does_not_cover_them(tmp_path: Path) -> None:
    policy = _policy(tmp_path, overlong=1, nontext=0)
    key = SecretBytes(b"0123456789abcdef")
    plan(policy, Budget(tie_key=key))
    with pytest.raises(ConfigError, match="unread"):
        plan(policy, Budget(tie_key=key, unreadable=frozenset({OVERLONG})))


def test_the_rails_settings_decide_which_go_to_the_expert() -> None:
    def causes(**settings: str) -> frozenset[Unreadable]:
        expert = {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
        return budget_of(CtdConfig.model_validate({"policy": "p", "expert": expert, **settings})).unreadable

    assert causes() == frozenset()
    assert causes(on_nontext="allow") == frozenset()
    assert causes(on_nontext="expert") == {NONTEXT}
    assert causes(on_nontext="expert", on_overlong="expert") == {NONTEXT, OVERLONG}


@given(
    conversation=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    unread=st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=8),
    causes=st.sets(st.sampled_from(Unreadable)),
)
def test_each_turn_stays_in_its_conversation(
    conversation: list[int], unread: list[tuple[int, bool]], causes: set[Unreadable]
) -> None:
    numbers = np.unique(conversation, return_inverse=True)[1].astype(np.int64)
    scores = TurnScores(np.arange(numbers.size, dtype=np.float64), numbers)
    turns = UnreadableTurns(
        np.array([number for number, _ in unread], dtype=np.int64), np.array([long for _, long in unread], dtype=bool)
    )
    kept = [number for number, long in unread if (OVERLONG if long else NONTEXT) in causes]
    merged = turns.beside(scores, causes)
    assert merged.turns == numbers.size + len(kept)
    assert int(np.isinf(merged.d).sum()) == len(kept)
    assert sorted(merged.lengths.tolist()) == sorted(np.unique([*numbers.tolist(), *kept], return_counts=True)[1])
    assert merged.conversation is not None
    # The numbers keep their order, so conversations stay in order of arrival.
    old = np.array([*numbers.tolist(), *kept])
    assert (np.argsort(old, kind="stable") == np.argsort(merged.conversation, kind="stable")).all()
