"""Certificates on conversations of several turns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.betting import Bets
from ctd_guardrail.policy.budget import Certificate, Guarantee, Method, Status, certify, infeasible
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.spending import budget_beside_audit
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores
from tests.support.traffic import Conversations

TURN, CONVERSATION = BudgetUnit.TURN, BudgetUnit.CONVERSATION


def counts_above(scores: TurnScores, threshold: float) -> IntArray:
    """D_i of every conversation, without the code under test."""
    assert scores.conversation is not None
    counts = np.zeros(scores.conversations, dtype=np.int64)
    for d, conversation in zip(scores.d.tolist(), scores.conversation.tolist(), strict=True):
        counts[conversation] += d > threshold
    return counts


@pytest.mark.parametrize("unit", BudgetUnit)
@pytest.mark.parametrize("first_look", [None, 60])
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_the_lowest_of_a_scan_over_all(unit: BudgetUnit, first_look: int | None, seed: int) -> None:
    scores = Conversations(mean=3, longest=8).draw(np.random.default_rng(seed), 120).scores
    bets = Bets(scores, 0.05, unit=unit, max_turns=8, first_look=first_look)
    alpha = 0.3 if unit is TURN else 1.2
    sides, scales = bets._sides(alpha), bets._scales(alpha)
    places = np.arange(scores.turns)
    certified = bets._certifies(bets._counts_above(places), sides, scales)
    assert (np.diff(certified.astype(int)) >= 0).all()  # monotone in lambda
    assert 10 < certified.sum() < scores.turns - 10
    assert bets.threshold(alpha) == scores.d[int(np.argmax(certified))]


@pytest.mark.parametrize("unit", BudgetUnit)
def test_no_capital_is_ever_negative(unit: BudgetUnit) -> None:
    """Every turn of the longest conversations is delegated: the largest loss there is."""
    lengths = np.array([1, 8] * 40)
    scores = TurnScores.of(np.arange(lengths.sum(), dtype=float), np.repeat(np.arange(80), lengths))
    for first_look in (None, 10):
        bets = Bets(scores, 0.1, unit=unit, max_turns=8, first_look=first_look)
        x = bets._sides(0.5).allowance[:, None] - bets._lengths[:, None]
        assert not bets._certifies(bets._lengths[:, None].astype(float), bets._sides(0.5), bets._scales(0.5)).any()
        assert x.min() >= -bets._sides(0.5).largest_loss


@pytest.mark.parametrize("dependence", [0.0, 0.7])
def test_betting_uses_more_of_the_budget_than_thinning(dependence: float) -> None:
    scores = Conversations(mean=4, longest=20, correlation=dependence).draw(np.random.default_rng(0), 2000).scores
    bet = certify(scores, 0.1, 0.05)
    thinned = certify(scores, 0.1, 0.05, guarantee=Guarantee.SIMULTANEOUS)
    assert (bet.method, thinned.method) == (Method.BETTING, Method.THINNING)
    assert thinned.mean_rate < bet.mean_rate < 0.1
    assert bet.mean_rate == counts_above(scores, bet.threshold).sum() / scores.turns
    assert (bet.conversations, bet.turns, bet.n, bet.max_turns) == (2000, scores.turns, 2000, scores.max_turns)


@pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.SIMULTANEOUS, Guarantee.EXPECTED])
def test_conversations_of_one_turn_are_certified_in_closed_form(guarantee: Guarantee) -> None:
    d = np.random.default_rng(0).normal(size=500)
    plain = certify(np.sort(d), 0.1, 0.05, guarantee=guarantee)
    assert certify(TurnScores.of(d, range(500)), 0.1, 0.05, guarantee=guarantee) == plain
    assert plain.method is Method.EXACT_BINOMIAL


@pytest.mark.parametrize(("unit", "alpha"), [(TURN, 0.1), (TURN, 0.37), (CONVERSATION, 0.4), (CONVERSATION, 2.5)])
def test_expected_spends_the_allowance_of_one_more_conversation(unit: BudgetUnit, alpha: float) -> None:
    scores = Conversations(mean=4, longest=12).draw(np.random.default_rng(1), 400).scores
    certificate = certify(scores, alpha, 0.05, unit=unit, guarantee=Guarantee.EXPECTED, max_turns=15)
    lengths = scores.lengths
    allowance = alpha * lengths if unit is TURN else np.full(lengths.size, alpha)
    largest = 15 - (15 * alpha if unit is TURN else alpha)

    def total(threshold: float) -> float:
        return float((counts_above(scores, threshold) - allowance).sum()) + largest

    below = scores.d[np.searchsorted(scores.d, certificate.threshold) - 1]
    assert total(certificate.threshold) <= 1e-9 < total(float(below))


def test_expected_on_single_turns_is_the_closed_form_of_before() -> None:
    d = np.sort(np.random.default_rng(0).normal(size=300))
    for alpha in (0.01, 0.1, 0.25, 0.5):
        k = largest_count(301, alpha) - 1
        assert certify(d, alpha, 0.05, guarantee=Guarantee.EXPECTED).threshold == d[299 - k]


def test_a_budget_per_conversation_may_exceed_one_call() -> None:
    scores = Conversations(mean=6, longest=20).draw(np.random.default_rng(2), 1500).scores
    certificate = certify(scores, 1.5, 0.05, unit=CONVERSATION)
    calls = counts_above(scores, certificate.threshold)
    assert 1.2 < calls.mean() < 1.5
    assert certificate.mean_rate == calls.mean()
    assert (certificate.unit, certificate.method) == (CONVERSATION, Method.BETTING)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"guarantee": Guarantee.NEXT, "horizon": 100}, "guarantee"),
        ({"guarantee": Guarantee.SIMULTANEOUS, "unit": CONVERSATION}, "guarantee"),
        ({"guarantee": Guarantee.EXPECTED, "first_look": 10}, "guarantee"),
        ({"max_turns": 2}, "max_turns"),
        ({"alpha": 12.0, "unit": CONVERSATION}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": 0.0, "unit": CONVERSATION}, "alpha"),
        ({"alpha": math.nan, "unit": CONVERSATION}, "alpha"),
    ],
)
def test_what_conversations_cannot_have_is_refused(arguments: dict[str, object], key: str) -> None:
    scores = Conversations(mean=4, longest=12).draw(np.random.default_rng(0), 100).scores
    with pytest.raises(ConfigError) as error:
        certify(scores, **{"alpha": 0.1, "delta": 0.05, **arguments})  # type: ignore[arg-type]
    assert error.value.key == key
    assert error.value.hint


def test_the_same_data_give_the_same_certificate_in_any_order_of_turns() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 6, size=300)
    ids = np.repeat(np.arange(300), lengths)
    d = rng.normal(size=ids.size)
    within = np.lexsort((rng.random(ids.size), ids))  # the turns of a conversation change places
    for guarantee in (Guarantee.EXACT, Guarantee.EXPECTED):
        one = certify(TurnScores.of(d, ids), 0.2, 0.1, guarantee=guarantee)
        assert certify(TurnScores.of(d[within], ids[within]), 0.2, 0.1, guarantee=guarantee) == one


def test_growing_data_keep_what_was_certified() -> None:
    """The best prefix counts, so a longer file of the same series never raises the threshold."""
    whole = Conversations(mean=4, longest=12).draw(np.random.default_rng(4), 4000).scores
    assert whole.conversation is not None
    thresholds = []
    for n in (500, 1000, 2500, 4000):
        kept = whole.conversation < n
        part = TurnScores(whole.d[kept], whole.conversation[kept])
        thresholds.append(certify(part, 0.2, 0.05, max_turns=12, first_look=500).threshold)
    # A threshold is one of the data, so that more data may offer a lower one in a gap; it is never higher.
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] < thresholds[0]


class TestAlwaysDelegated:
    """Unreadable turns go to the expert whatever the threshold."""

    @pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.SIMULTANEOUS, Guarantee.EXPECTED])
    @pytest.mark.parametrize("most", [1, 8])
    def test_they_count_at_every_threshold(self, most: int, guarantee: Guarantee) -> None:
        scores = Conversations(mean=min(most, 3), longest=most).draw(np.random.default_rng(5), 2000).scores
        some = scores.d.copy()
        some[-60:] = math.inf
        with_some = certify(TurnScores(some, scores.conversation), 0.2, 0.05, guarantee=guarantee)
        assert with_some.threshold == certify(scores, 0.2, 0.05, guarantee=guarantee).threshold
        assert with_some.always == 60

    @pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.SIMULTANEOUS, Guarantee.EXPECTED])
    @pytest.mark.parametrize("most", [1, 8])
    def test_a_budget_that_they_exceed_is_infeasible_and_says_why(self, most: int, guarantee: Guarantee) -> None:
        scores = Conversations(mean=min(most, 3), longest=most).draw(np.random.default_rng(5), 2000).scores
        d = scores.d.copy()
        d[-d.size // 4 :] = math.inf
        certificate = certify(TurnScores(d, scores.conversation), 0.2, 0.05, guarantee=guarantee)
        assert (certificate.status, certificate.threshold, certificate.k) == (Status.INFEASIBLE, math.inf, -1)
        error = infeasible(certificate, key="alpha")
        assert f"{certificate.always} of {d.size} turns go to the expert whatever the threshold" in error.hint
        again = certify(TurnScores(d, scores.conversation), error.alpha_min, 0.05, guarantee=guarantee)
        assert again.status is Status.CERTIFIED
        assert error.alpha_min < 0.4

    def test_all_of_them_is_no_budget(self) -> None:
        certificate = certify(TurnScores.of(np.full(50, math.inf)), 0.5, 0.05)
        assert certificate.status is Status.INFEASIBLE


def random_problem(rng: np.random.Generator) -> tuple[TurnScores, float, dict[str, object]]:
    n = int(np.exp(rng.uniform(np.log(20), np.log(3000))))
    delta = float(np.exp(rng.uniform(np.log(0.001), np.log(0.3))))
    guarantee = list(Guarantee)[rng.integers(4)]
    most = 1 if guarantee is Guarantee.NEXT else int(rng.choice([1, 1, 10]))
    if guarantee is Guarantee.SIMULTANEOUS:
        n = min(n, 80)  # its envelope takes a second for each n and delta in the thousands
    scores = Conversations(mean=min(most, 4), longest=most).draw(rng, n).scores
    arguments: dict[str, object] = {"guarantee": guarantee}
    if guarantee is Guarantee.NEXT:
        arguments["horizon"] = int(rng.integers(50, 3000))
    return scores, delta, arguments


def test_every_alpha_that_a_hint_names_is_feasible() -> None:
    rng = np.random.default_rng(6)
    hinted = 0
    while hinted < 300:
        scores, delta, arguments = random_problem(rng)
        audit_share = float(rng.choice([0.0, rng.uniform(0.0001, 0.05)]))
        if arguments["guarantee"] is Guarantee.NEXT:
            audit_share = 0.0
        lowest = 0.0100001 if arguments["guarantee"] is Guarantee.SIMULTANEOUS else 1e-5
        certificate = certify(scores, lowest, delta, **arguments)  # type: ignore[arg-type]
        if certificate.status is Status.CERTIFIED:
            continue
        error = infeasible(certificate, key="alpha", audit_share=audit_share)
        if "no useful alpha" in error.hint:
            continue
        shown = float(error.hint.split("certify is ")[1].split(";")[0])
        assert shown == error.alpha_min
        for alpha in (budget_beside_audit(shown, audit_share) if audit_share else shown, certificate.alpha_min):
            again = certify(scores, alpha, delta, **arguments)  # type: ignore[arg-type]
            assert again.status is Status.CERTIFIED, (arguments, scores.conversations, delta, audit_share, alpha)
        hinted += 1


@pytest.mark.parametrize("unit", BudgetUnit)
@pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.EXPECTED])
def test_the_number_of_conversations_that_an_error_names_is_enough(unit: BudgetUnit, guarantee: Guarantee) -> None:
    few = Conversations(mean=4, longest=10).draw(np.random.default_rng(7), 40).scores
    certificate: Certificate = certify(few, 0.02, 0.05, unit=unit, guarantee=guarantee)
    assert certificate.status is Status.INFEASIBLE
    lengths = np.resize(few.lengths, certificate.n_min)
    more = TurnScores.of(np.arange(float(lengths.sum())), np.repeat(np.arange(lengths.size), lengths))
    assert certify(more, 0.02, 0.05, unit=unit, guarantee=guarantee).status is Status.CERTIFIED
    assert certificate.n_min < 100 * 40


class TestTurnScores:
    def test_conversations_are_numbered_in_order_of_arrival(self) -> None:
        scores = TurnScores.of([3.0, 1.0, 2.0, 0.0], ["b", "a", "b", "c"])
        assert scores.d.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert scores.conversation is not None
        assert scores.conversation.tolist() == [2, 1, 0, 0]
        assert scores.lengths.tolist() == [2, 1, 1]
        assert (scores.turns, scores.conversations, scores.max_turns, scores.has_several_turns) == (4, 3, 2, True)

    def test_single_turns_have_no_conversations(self) -> None:
        scores = TurnScores.of([2.0, 1.0, math.inf])
        assert scores.conversation is None
        assert scores.lengths.tolist() == [1, 1, 1]
        assert (scores.turns, scores.conversations, scores.max_turns, scores.has_several_turns) == (3, 3, 1, False)
        assert (scores.always, scores.count_above(1.0), scores.rate_above(2.0)) == (1, 2, 1 / 3)

    @pytest.mark.parametrize(
        ("d", "ids"),
        [([], None), ([math.nan], None), ([-math.inf], None), ([1.0], ["a", "b"]), ([[1.0]], None)],
    )
    def test_what_is_no_column_of_scores_is_refused(self, d: FloatArray, ids: list[str] | None) -> None:
        with pytest.raises(DataError):
            TurnScores.of(d, ids)
