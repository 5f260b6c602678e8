import gc
import logging
import threading

import pytest

from ctd_guardrail.runtime.relay import Relay


class Counting:
    def __init__(self) -> None:
        self.ticks: list[bool] = []

    def tick(self, *, is_last: bool) -> None:
        self.ticks.append(is_last)


def test_calls_of_many_threads_run_one_at_a_time_each_threads_in_order() -> None:
    relay = Relay(every_s=0.001)
    seen: list[tuple[int, int]] = []
    running = threading.Lock()

    def take(thread: int, number: int) -> None:
        assert running.acquire(blocking=False)
        seen.append((thread, number))
        running.release()

    threads = [
        threading.Thread(target=lambda i=i: [relay.put(take, i, number) for number in range(500)]) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    relay.flush()
    assert len(seen) == 2000
    for i in range(4):
        assert [number for thread, number in seen if thread == i] == list(range(500))


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    relay = Relay(every_s=3600, capacity=3)
    seen: list[int] = []
    for number in range(5):
        relay.put(seen.append, number)
    relay.flush()
    assert seen == [0, 1, 2]
    assert relay.dropped == 2


def test_an_observer_that_fails_is_named_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    relay = Relay(every_s=3600)
    seen: list[int] = []

    def broken(text: str) -> None:
        raise ValueError(text)

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            relay.put(broken, "what the user wrote")
        relay.put(seen.append, 1)
        relay.flush()
    assert seen == [1]
    assert len(caplog.records) == 1
    assert "broken: ValueError" in caplog.text
    assert "what the user wrote" not in caplog.text


def test_ticks_follow_each_batch_as_long_as_somebody_holds_their_owner() -> None:
    relay = Relay(every_s=3600)
    counting = Counting()
    relay.attend(counting)
    relay.flush()
    relay.flush(is_last=True)
    assert counting.ticks == [False, True]
    ticks = counting.ticks
    del counting
    gc.collect()
    relay.flush()
    assert ticks == [False, True]
