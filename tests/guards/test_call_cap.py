import random

import pytest

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.guards.call_cap import CallCap, shared_call_cap


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("calls", "per_s", "burst"), [(10, 60.0, None), (1, 1.0, 1), (100, 1.0, 5), (3, 86_400.0, 7)])
def test_no_window_of_time_sees_more_calls_than_the_cap(calls: int, per_s: float, burst: int | None) -> None:
    rng, clock = random.Random(0), Clock()
    cap = CallCap(calls, per_s, burst, clock=clock)
    passed: list[float] = []
    for _ in range(2000):
        clock.now += rng.choice([0.0, 0.0, per_s / calls / 3, per_s])
        if cap.take():
            passed.append(clock.now)
    room = calls if burst is None else burst
    for i, start in enumerate(passed):
        for j in range(i, min(i + 300, len(passed))):
            assert j - i + 1 <= calls * (passed[j] - start) / per_s + room + 0.5 + 1e-6


def test_all_calls_of_the_cap_can_be_used() -> None:
    clock = Clock()
    cap = CallCap(10, 60.0, 1, clock=clock)
    passed = 0
    for second in range(6000):
        clock.now = float(second)
        passed += cap.take()
    assert passed == pytest.approx(1000, abs=2)


def test_a_burst_is_refilled_by_quiet_time_and_not_beyond() -> None:
    clock = Clock()
    cap = CallCap(2, 1.0, 4, clock=clock)
    assert [cap.take() for _ in range(6)] == [True] * 4 + [False] * 2
    clock.now = 1000.0
    assert [cap.take() for _ in range(6)] == [True] * 4 + [False] * 2


def test_one_scope_shares_its_cap_as_long_as_somebody_holds_it() -> None:
    first = shared_call_cap("folder", 1, 3600.0)
    assert first.take()
    assert shared_call_cap("folder", 1, 3600.0) is first
    other = shared_call_cap("another folder", 1, 3600.0)
    assert other.take()


@pytest.mark.parametrize(("calls", "per_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_a_cap_without_calls_or_time_is_refused(calls: int, per_s: float) -> None:
    with pytest.raises(ConfigError):
        CallCap(calls, per_s)
