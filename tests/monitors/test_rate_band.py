import math

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.monitors.rate_band import DelegationCount, rate_band


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 40), (850, 10_000), (1, 10**6)])
def test_the_band_holds_the_realised_rate_and_ends_where_the_evidence_is_one_over_delta(hits: int, total: int) -> None:
    low, high = rate_band(hits, total, delta=0.05)
    assert 0.0 <= low <= hits / total <= high <= 1.0

    def log_evidence(rate: float) -> float:
        mixture = math.lgamma(hits + 0.5) + math.lgamma(total - hits + 0.5) - math.lgamma(total + 1) - math.log(math.pi)
        return mixture - hits * math.log(rate) - (total - hits) * math.log1p(-rate)

    for end in {low, high} - {0.0, 1.0}:
        assert log_evidence(end) == pytest.approx(math.log(20), abs=1e-5)


def test_nothing_is_known_at_first() -> None:
    assert rate_band(0, 0) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="delta"):
        rate_band(0, 0, delta=0.0)


def test_looking_all_the_time_the_band_is_rarely_ever_wrong() -> None:
    rng = np.random.default_rng(0)
    looks = np.unique(np.geomspace(1, 2000, 40).astype(int))
    wrong = 0
    for _ in range(200):
        hits = np.cumsum(rng.random(2000) < 0.1)
        bands = [rate_band(int(hits[t - 1]), int(t), delta=0.1) for t in looks]
        wrong += any(not low <= 0.1 <= high for low, high in bands)
    # At most .1 is promised; 36 of 200 would be five standard deviations above it.
    assert wrong <= 36


def test_a_count_goes_on_where_it_was_saved() -> None:
    count = DelegationCount()
    for delegated in (True, False, False, True):
        count.update(delegated=delegated)
    restored = DelegationCount.from_state(count.state())
    assert (restored.inputs, restored.delegated, restored.rate) == (4, 2, 0.5)
    assert restored.band(0.05) == rate_band(2, 4)
    with pytest.raises(DataError, match="inputs"):
        DelegationCount.from_state({"inputs": 1, "delegated": 2})
