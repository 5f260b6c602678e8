"""The queue of events, and the one thread that hands them to slow sinks."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ctd_guardrail.observability.events import Emit, Event, Sink, UnscreenedCall
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["EventQueue", "Periodic", "event_queue"]

log = logging.getLogger(__name__)

_EVERY_S: Final = 0.2
_CAPACITY: Final = 65_536
_LONGEST_TURN_S: Final = 0.0005


class Periodic(Protocol):
    """Has periodic work, such as saving a file."""

    def tick(self, *, is_last: bool) -> None:
        """Do the work that is due. Called after each batch, several times a second.

        Args:
            is_last: Whether the queue is closed.
        """
        ...


class EventQueue:
    """Hands events to sinks in the order in which they were emitted.

    Emitting costs a request one append. The thread is not woken by single events: it reads the queue several times a
    second, so that no event loop pays for waking it. Its sinks may be slow, may write files and may fail, without an
    effect on any request.

    Args:
        every_s: Seconds between batches.
        capacity: Events that may wait. Further events are dropped and counted, except an :class:`UnscreenedCall`.

    Attributes:
        dropped: Number of events that were dropped.
    """

    def __init__(self, *, every_s: float = _EVERY_S, capacity: int = _CAPACITY) -> None:
        self.dropped = 0
        self._every_s = every_s
        self._capacity = capacity
        self._waiting: deque[tuple[Sequence[Sink], Event]] = deque()
        self._periodic: weakref.WeakSet[Periodic] = weakref.WeakSet()
        self._failures: set[str] = set()
        self._order = threading.Lock()  # makes sinks on both sides see one order
        self._batch = threading.Lock()  # one batch at a time, on any thread
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def emitter(self, *, at_once: Sequence[Sink] = (), later: Sequence[Sink] = ()) -> Emit:
        """Return the function that reports events to these sinks. It serves any number of threads and event loops.

        All sinks see the same events in the same order.

        Args:
            at_once: Sinks that read an event before ``emit`` returns. They are fast and raise nothing.
            later: Sinks that read it on the queue's thread.
        """
        if len(at_once) == 1 and not later:
            return at_once[0]
        order, waiting = self._order, self._waiting

        def emit(event: Event) -> None:
            with order:
                for sink in at_once:
                    sink(event)
                if len(waiting) < self._capacity or isinstance(event, UnscreenedCall):
                    waiting.append((later, event))
                else:
                    self.dropped += 1
            if self._thread is None:
                self._start()

        return emit

    def attend(self, periodic: Periodic) -> None:
        """Call its ``tick`` after each batch, until it is garbage-collected."""
        with self._batch:
            self._periodic.add(periodic)
        self._start()

    def flush(self, *, is_last: bool = False) -> None:
        """Hand all events that wait now to their sinks, on the calling thread.

        Args:
            is_last: Whether the queue is closed.
        """
        with self._batch:
            offered = time.perf_counter()
            for _ in range(len(self._waiting)):
                sinks, event = self._waiting.popleft()
                for sink in sinks:
                    try:
                        sink(event)
                    except Exception as error:  # noqa: BLE001  # a failed sink stops neither the others nor the guard
                        self._log_once(sink, error)
                # A thread that computes keeps the interpreter for 5 ms unless it offers it. Each offer has a cost.
                if time.perf_counter() - offered > _LONGEST_TURN_S:
                    time.sleep(0)
                    offered = time.perf_counter()
            for periodic in list(self._periodic):
                try:
                    periodic.tick(is_last=is_last)
                except Exception as error:  # noqa: BLE001  # as above
                    self._log_once(periodic.tick, error)

    def close(self) -> None:
        """Hand over all events that wait, and end the thread. Later events reach the sinks at a :meth:`flush` only."""
        with self._starting:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            thread.join()
        self.flush(is_last=True)

    def _log_once(self, call: Callable[..., None], error: Exception) -> None:
        failure = f"{_name(call)}: {type(error).__name__}"
        if failure not in self._failures:
            self._failures.add(failure)
            log.error("observing the guard failed, logged once: %s", failure)  # its message may quote a text

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._loop, name="ctd-observe", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        while not self._closing.wait(self._every_s):
            self.flush()


def _name(call: Callable[..., None]) -> str:
    return str(getattr(call, "__qualname__", type(call).__qualname__))


def event_queue(runtime: Runtime | None = None) -> EventQueue:
    """Return the queue of a runtime. Guards of several policies may share a file, which then has one writing thread.

    Args:
        runtime: Owns the queue; None: the runtime of the process.
    """
    return (runtime or Runtime.default()).own("event queue", EventQueue)
