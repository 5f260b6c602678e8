import asyncio
import threading

import pytest

from ctd_guardrail.errors import BreakerOpenError
from ctd_guardrail.experts.bounded.breaker import BreakerState, CircuitBreaker, Health
from tests.support.clocks import ManualClock

HEALTH = {ValueError: Health.BAD, KeyError: Health.GOOD, asyncio.CancelledError: Health.UNKNOWN}


def breaker(failures: int = 3) -> tuple[CircuitBreaker, ManualClock]:
    clock = ManualClock()
    return CircuitBreaker(failures=failures, health=lambda error: HEALTH[type(error)], clock=clock), clock


def call(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    try:
        with breaker.call():
            if error is not None:
                raise error
    except (ValueError, KeyError, asyncio.CancelledError):
        pass


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    guard, _ = breaker(failures=3)
    for error in (ValueError(), ValueError(), None, ValueError(), KeyError(), ValueError(), ValueError()):
        call(guard, error)
    assert guard.state is BreakerState.CLOSED
    call(guard, ValueError())
    assert guard.state is BreakerState.OPEN
    with pytest.raises(BreakerOpenError):
        call(guard)


def test_what_says_nothing_about_the_expert_is_neither_failure_nor_success() -> None:
    guard, clock = breaker(failures=2)
    for _ in range(1000):
        call(guard, asyncio.CancelledError())
    assert guard.state is BreakerState.CLOSED
    call(guard, ValueError())
    call(guard, asyncio.CancelledError())
    call(guard, ValueError())
    assert guard.state is BreakerState.OPEN
    clock.now = 10.0
    call(guard, asyncio.CancelledError())
    assert guard.state is BreakerState.HALF_OPEN
    call(guard)
    assert guard.state is BreakerState.CLOSED


def test_a_failing_trial_opens_it_for_as_long_again() -> None:
    guard, clock = breaker(failures=1)
    call(guard, ValueError())
    clock.now = 10.0
    call(guard, ValueError())
    clock.now = 19.0
    with pytest.raises(BreakerOpenError):
        call(guard)
    clock.now = 20.0
    call(guard)
    assert guard.state is BreakerState.CLOSED


def test_at_half_open_one_call_is_under_way() -> None:
    guard, clock = breaker(failures=1)
    call(guard, ValueError())
    clock.now = 10.0
    running = guard.call()
    running.__enter__()
    for _ in range(100):
        with pytest.raises(BreakerOpenError):
            call(guard)
    running.__exit__(None, None, None)
    assert guard.state is BreakerState.CLOSED
    call(guard)


def test_a_call_of_an_earlier_state_has_no_say_in_a_later_one() -> None:
    guard, clock = breaker(failures=1)
    old, late = guard.call(), guard.call()
    old.__enter__()
    late.__enter__()
    call(guard, ValueError())
    old.__exit__(None, None, None)
    assert guard.state is BreakerState.OPEN
    clock.now = 10.0
    trial = guard.call()
    trial.__enter__()
    late.__exit__(ValueError, ValueError("late"), None)
    assert guard.state is BreakerState.HALF_OPEN
    trial.__exit__(None, None, None)
    assert guard.state is BreakerState.CLOSED


def test_the_one_call_is_one_over_all_threads() -> None:
    guard, clock = breaker(failures=1)
    call(guard, ValueError())
    clock.now = 10.0
    admitted, ready, go = [], threading.Barrier(32), threading.Event()

    def attempt() -> None:
        ready.wait(10)
        try:
            with guard.call():
                admitted.append(1)
                go.wait(10)
        except BreakerOpenError:
            refused.release()

    refused = threading.Semaphore(0)
    threads = [threading.Thread(target=attempt) for _ in range(32)]
    for thread in threads:
        thread.start()
    for _ in range(31):
        assert refused.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(admitted) == 1
