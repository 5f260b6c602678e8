import random
from dataclasses import replace

import pytest

from ctd_guardrail.errors import ExpertCapError
from ctd_guardrail.experts.bounded.buckets import Demand, MemoryStore
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from tests.support.clocks import ManualClock


def calls(amount: int, per_s: float = 60.0, burst: int | None = None, *, each: bool = False) -> Cap:
    return Cap("calls", amount, per_s, amount if burst is None else burst, each)


def tokens(amount: int, per_s: float = 60.0, *, each: bool = False) -> Cap:
    return Cap("tokens", amount, per_s, amount, each)


def spend_caps(*caps: Cap, most: int = 100) -> tuple[SpendCaps, ManualClock]:
    clock = ManualClock()
    return SpendCaps(caps, MemoryStore(clock), max_principals=most, clock=clock), clock


async def passes(caps: SpendCaps, principal: str | None = None, tokens: int = 1) -> bool:
    try:
        await caps.take(principal, tokens=tokens)
    except ExpertCapError:
        return False
    return True


@pytest.mark.parametrize(("amount", "per_s", "burst"), [(10, 60.0, None), (1, 1.0, 1), (100, 1.0, 5), (3, 86_400.0, 7)])
async def test_no_window_of_time_sees_more_calls_than_the_cap(amount: int, per_s: float, burst: int | None) -> None:
    rng = random.Random(0)
    caps, clock = spend_caps(calls(amount, per_s, burst))
    passed: list[float] = []
    for _ in range(2000):
        clock.now += rng.choice([0.0, 0.0, per_s / amount / 3, per_s])
        if await passes(caps):
            passed.append(clock.now)
    room = amount if burst is None else burst
    for i, start in enumerate(passed):
        for j in range(i, min(i + 300, len(passed))):
            assert j - i + 1 <= amount * (passed[j] - start) / per_s + room + 1e-6


async def test_all_of_the_cap_can_be_used() -> None:
    caps, clock = spend_caps(calls(10, 60.0, 1))
    passed = 0
    for second in range(6000):
        clock.now = float(second)
        passed += await passes(caps)
    assert passed == pytest.approx(1000, abs=2)


async def test_tokens_beyond_the_estimate_come_out_of_later_calls_and_what_was_not_used_is_given_back() -> None:
    caps, clock = spend_caps(tokens(1000, 10.0))
    assert await passes(caps, tokens=400)
    await caps.settle(None, calls=0, tokens=1600)  # it took 2000
    assert not await passes(caps, tokens=1)
    clock.now = 9.9
    assert not await passes(caps, tokens=1)
    clock.now = 14.0
    assert await passes(caps, tokens=400)
    await caps.settle(None, calls=0, tokens=-399)
    assert await passes(caps, tokens=399)


async def test_a_call_that_is_larger_than_the_whole_cap_takes_all_of_it_and_a_debt() -> None:
    caps, clock = spend_caps(tokens(100, 10.0))
    assert await passes(caps, tokens=250)
    clock.now = 24.0
    assert not await passes(caps, tokens=100)
    clock.now = 25.0
    assert await passes(caps, tokens=100)


async def test_several_caps_all_have_to_give_and_none_is_charged_for_a_refusal() -> None:
    caps, clock = spend_caps(calls(2, 1.0), tokens(100, 1000.0))
    assert not await passes(caps, tokens=100) or not await passes(caps, tokens=100)
    clock.now = 0.001
    for _ in range(50):
        assert not await passes(caps, tokens=50)
    clock.now = 1000.0
    assert await passes(caps, tokens=100)


async def test_each_principal_has_as_much_and_those_without_a_name_share_one() -> None:
    caps, _ = spend_caps(calls(3, each=True))
    for principal in ("a", "b", None):
        assert [await passes(caps, principal) for _ in range(4)] == [True] * 3 + [False]


async def test_names_that_are_made_up_share_one_bucket_beyond_the_bound() -> None:
    caps, clock = spend_caps(calls(3, 60.0, each=True), most=10)
    passed = [await passes(caps, f"name {i}") for i in range(1000)]
    assert sum(passed) == 10 + 3
    clock.now = 61.0  # their buckets are full again, so their places are free
    assert [await passes(caps, f"other {i}") for i in range(12)] == [True] * 12


async def test_memory_does_not_grow_with_the_names_that_ever_were() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    caps = SpendCaps([calls(3, 1.0, each=True)], store, max_principals=10**9, clock=clock)
    for i in range(20_000):
        clock.now = i / 100
        assert await passes(caps, f"name {i}")
    assert len(store) <= 2048
    assert len(caps._seen) <= 101


async def test_a_store_knows_a_bucket_by_no_name_of_a_user() -> None:
    store = MemoryStore()
    await SpendCaps([calls(3, each=True)], store, max_principals=9).take("canary", tokens=1)
    assert "canary" not in str(store._buckets)


async def test_a_full_bucket_that_is_given_back_to_stays_full() -> None:
    store = MemoryStore(ManualClock())
    demand = Demand("key", rate=1.0, capacity=5.0, amount=-3.0)
    await store.charge([demand])
    assert await store.take([replace(demand, amount=5.0)])
    assert not await store.take([replace(demand, amount=1.0)])
