"""The benchmark of calls per request: its samples are whole conversations, and its rates those of the counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration.conversations import COLUMNS, SCORES, Conversations, drawn_rates, measure, split_rates
from tests.support.traffic import Conversations as Law

THREE = Conversations(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), np.array([0, 0, 1, 2, 2, 2]))


@pytest.fixture(scope="module")
def turns() -> Conversations:
    return Conversations(*Law(mean=8, longest=20, correlation=0.8, drift=0.1).draw(np.random.default_rng(0), 800))


def test_a_sample_holds_whole_conversations_and_a_repeated_one_counts_twice() -> None:
    taken = THREE.take(np.array([2, 0, 2]))
    assert taken.d.tolist() == [0.4, 0.5, 0.6, 0.1, 0.2, 0.4, 0.5, 0.6]
    assert taken.of.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_the_rate_is_the_share_of_the_turns_above_the_threshold() -> None:
    assert THREE.rate(0.4) == 2 / 6


def test_two_kinds_of_scores_are_certified() -> None:
    whole, independent = (SCORES[name](THREE) for name in SCORES)
    assert (whole.turns, whole.conversations) == (6, 3)
    assert (independent.turns, independent.conversations) == (6, 6)


def test_whole_conversations_keep_the_budget_and_turns_as_if_independent_do_not(turns: Conversations) -> None:
    exceeded = {name: (np.array(list(drawn_rates(turns, SCORES[name], 0.2, 100))) > 0.2).mean() for name in SCORES}
    assert exceeded["whole conversations"] < 0.15 < exceeded["turns as if independent"]


def test_the_halves_of_a_split_are_disjoint_and_seeded(turns: Conversations) -> None:
    first, second = (list(split_rates(turns, SCORES["whole conversations"], 0.2, 3)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_a_row_for_each_kind_and_budget(turns: Conversations) -> None:
    rows = list(measure(turns, splits=2, draws=2))
    assert len(rows) == 8
    assert {len(row) + 1 for row in rows} == {len(COLUMNS)}
