import gc
import logging
import threading
import time

import pytest

from ctd_guardrail.observability.events import Event, Recalled, Routed, UnscreenedCall
from ctd_guardrail.observability.queue import EventQueue


class Counting:
    def __init__(self) -> None:
        self.ticks: list[bool] = []

    def tick(self, *, is_last: bool) -> None:
        self.ticks.append(is_last)


def routed(number: int) -> Routed:
    return Routed(float(number), is_delegated=False, is_audited=False)


def test_events_of_many_threads_are_read_one_at_a_time_in_one_order() -> None:
    queue = EventQueue(every_s=0.001)
    at_once: list[Event] = []
    later: list[Event] = []
    running = threading.Lock()

    def read(event: Event) -> None:
        assert running.acquire(blocking=False)
        later.append(event)
        running.release()

    # The second sink offers the interpreter to another thread, between the two sides.
    emit = queue.emitter(at_once=[at_once.append, lambda _: time.sleep(0)], later=[read])
    threads = [
        threading.Thread(target=lambda i=i: [emit(routed(1000 * i + number)) for number in range(500)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.flush()
    assert len(later) == 2000
    assert later == at_once


def test_events_that_do_not_fit_are_dropped_and_counted_except_unscreened_calls() -> None:
    queue = EventQueue(every_s=3600, capacity=3)
    at_once: list[Event] = []
    later: list[Event] = []
    emit = queue.emitter(at_once=[at_once.append], later=[later.append])
    events = [routed(number) for number in range(5)]
    for event in [*events, UnscreenedCall("unknown")]:
        emit(event)
    assert len(at_once) == 6
    queue.flush()
    assert later == [*events[:3], UnscreenedCall("unknown")]
    assert queue.dropped == 2


def test_a_sink_that_fails_is_logged_once_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    queue = EventQueue(every_s=3600)
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError(repr(event))

    emit = queue.emitter(later=[broken, seen.append])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            emit(UnscreenedCall("what the user wrote"))
        queue.flush()
    assert len(seen) == 3
    assert len(caplog.records) == 1
    assert "broken: ValueError" in caplog.text
    assert "what the user wrote" not in caplog.text


def test_a_guard_without_slow_sinks_fills_no_queue() -> None:
    queue = EventQueue(every_s=3600, capacity=0)
    seen: list[Event] = []
    queue.emitter(at_once=[seen.append])(Recalled())
    assert (seen, queue.dropped) == ([Recalled()], 0)


def test_ticks_follow_each_batch_until_their_owner_goes() -> None:
    queue = EventQueue(every_s=3600)
    counting = Counting()
    queue.attend(counting)
    queue.flush()
    queue.flush(is_last=True)
    assert counting.ticks == [False, True]
    ticks = counting.ticks
    del counting
    gc.collect()
    queue.flush()
    assert ticks == [False, True]
