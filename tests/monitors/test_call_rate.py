import json
import math
from collections import Counter

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.call_rate import CallRates, RateBets
from ctd_guardrail.monitors.conversations import ClosedConversation, Request
from tests.support.traffic import Conversations


def request(scores: tuple[float, ...] = (0.0,), calls: int = 0, *, is_configured: bool = True) -> Request:
    return Request("name", "digest", scores, calls, is_placed=True, at=0.0, is_configured=is_configured)


def closed(requests: int, calls: int, *, is_whole: bool = True) -> ClosedConversation:
    return ClosedConversation("name", requests, calls, None, is_whole=is_whole)


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 40), (850, 10_000), (1, 10**6)])
def test_the_band_holds_the_realised_rate_and_ends_where_the_evidence_is_enough(hits: int, total: int) -> None:
    bets = RateBets({(1, 0): total - hits, (1, 1): hits}, max_units=1, max_calls=1)
    low, high = bets.lower(0.025), bets.upper(0.025)
    assert 0.0 <= low <= hits / total <= high <= 1.0

    scales = 0.9 / 2.0 ** np.arange(16)

    def log_capital(rate: float, stakes: np.ndarray) -> float:
        logs = hits * np.log1p(stakes * (1 - rate)) + (total - hits) * np.log1p(-stakes * rate)
        return float(np.logaddexp.reduce(logs) - np.log(16))

    if low:
        assert log_capital(low, scales / low) == pytest.approx(np.log(40), abs=0.01)
    if high < 1:
        assert log_capital(high, -scales) == pytest.approx(np.log(40), abs=0.01)


def test_a_band_of_single_requests_is_about_as_narrow_as_that_of_a_beta_mixture() -> None:
    """The mixture over a Beta(1/2, 1/2) law gives .0886 to .1123, for 1,000 of 10,000 at .05."""
    bets = RateBets({(1, 0): 9_000, (1, 1): 1_000}, max_units=1, max_calls=2)
    assert (bets.lower(0.025), bets.upper(0.025)) == pytest.approx((0.0886, 0.1123), abs=0.002)


def test_nothing_is_known_at_first() -> None:
    assert CallRates().band(0.05, max_turns=20, max_calls=2) == (0.0, 2.0)
    assert CallRates().band(0.05, max_turns=20, max_calls=None) == (0.0, math.inf)
    with pytest.raises(ConfigError, match="delta"):
        CallRates().band(0.0, max_turns=1, max_calls=1)


@pytest.mark.parametrize("is_per_conversation", [False, True])
def test_looking_all_the_time_the_band_is_rarely_ever_wrong(is_per_conversation: bool, draws: int) -> None:  # noqa: FBT001
    """Turns of one conversation depend on each other."""
    law = Conversations(mean=4.0, longest=10, correlation=0.8, drift=0.05)
    threshold = law.threshold(0.1)
    truth = law.calls(threshold) if is_per_conversation else 0.1
    looks = set(np.unique(np.geomspace(1, 500, 7).astype(int)).tolist())
    wrong = 0
    for draw in range(draws):
        turns = law.draw(np.random.default_rng(draw), 500)
        calls = np.bincount(turns.conversation[turns.d > threshold], minlength=500)
        rates, is_wrong = CallRates(), False
        for number, (requests, hits) in enumerate(zip(turns.lengths.tolist(), calls.tolist(), strict=True), start=1):
            rates.close(closed(requests, hits))
            if number in looks:
                low, high = rates.band(0.1, max_turns=10, max_calls=1, is_per_conversation=is_per_conversation)
                is_wrong |= not low <= truth <= high
        wrong += is_wrong
    assert wrong / draws <= 0.1 + 4 * np.sqrt(0.09 / draws)


def test_three_rates_of_one_traffic() -> None:
    rates = CallRates()
    for each in (request((0.1, 0.2), 2), request((), 0), request((0.3,), 1), request((0.9,), 1, is_configured=False)):
        rates.update(each)
    rates.close(closed(2, 2))
    rates.close(closed(1, 1))
    rates.close(closed(0, 0))  # all its requests ran under another budget
    rates.close(closed(20, 1, is_whole=False))
    assert (rates.requests, rates.turns, rates.calls, rates.conversations) == (3, 3, 3, 2)
    assert (rates.per_request, rates.per_turn, rates.per_conversation) == (1.0, 1.0, 1.5)


def test_calls_under_an_earlier_and_higher_limit_stay_within_the_band() -> None:
    rates = CallRates()
    for _ in range(100):
        rates.close(closed(1, 3))
    low, high = rates.band(0.05, max_turns=1, max_calls=1)
    assert 0.0 < low <= 3.0 <= high


def test_counts_go_on_where_they_were_saved() -> None:
    rates = CallRates()
    rates.update(request(calls=1))
    for key, number in Counter({(1, 0): 30, (2, 1): 4}).items():
        for _ in range(number):
            rates.close(closed(*key))
    restored = CallRates.from_state(json.loads(json.dumps(rates.state())))
    assert restored.state() == rates.state()
    assert restored.band(0.05, max_turns=2, max_calls=2) == rates.band(0.05, max_turns=2, max_calls=2)
    for damage in ([[1, 2]], [[1, 2, -1]], [[1, 2, 0.5]], {}):
        with pytest.raises(DataError, match="conversations"):
            CallRates.from_state(rates.state() | {"conversations": damage})
