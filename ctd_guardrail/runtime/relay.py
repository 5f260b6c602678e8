"""One thread on which everything slow about being observed happens, in order and away from the requests."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = ["RELAY", "Periodic", "Relay"]

log = logging.getLogger(__name__)

_EVERY_S: Final = 0.2
_CAPACITY: Final = 65_536
_LONGEST_TURN_S: Final = 0.0005


class Periodic(Protocol):
    """Has something to do now and then, on the relay's thread."""

    def tick(self, *, is_last: bool) -> None:
        """Do what is due. Called after each batch, several times a second.

        Args:
            is_last: Whether the process ends.
        """
        ...


class Relay:
    """Runs calls that request threads hand over, one after the other in the order in which they came.

    Handing over costs a request one append. The thread does not wait for single calls but comes by several times a
    second, so that an event loop never pays for waking it. Its calls may take long, may write files and may fail:
    nothing of that reaches a request.

    Args:
        every_s: Seconds between batches.
        capacity: Calls that may wait; one more is dropped, and counted.

    Attributes:
        dropped: Number of calls that were dropped.
    """

    def __init__(self, *, every_s: float = _EVERY_S, capacity: int = _CAPACITY) -> None:
        self.dropped = 0
        self._every_s = every_s
        self._capacity = capacity
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._periodic: weakref.WeakSet[Periodic] = weakref.WeakSet()
        self._failures: set[str] = set()
        self._lock = threading.Lock()  # one batch at a time, in whatever thread
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Hand over a call. It returns at once and raises nothing."""
        if len(self._calls) >= self._capacity:
            self.dropped += 1
            return
        self._calls.append((call, arguments))
        if self._thread is None:
            self._start()

    def attend(self, periodic: Periodic) -> None:
        """Call its ``tick`` after each batch, as long as somebody holds it."""
        with self._lock:
            self._periodic.add(periodic)
        if self._thread is None:
            self._start()

    def flush(self, *, is_last: bool = False) -> None:
        """Run, on the calling thread, all that has been handed over so far.

        Args:
            is_last: Whether the process ends.
        """
        with self._lock:
            offered = time.perf_counter()
            for _ in range(len(self._calls)):
                call, arguments = self._calls.popleft()
                self._run(call, *arguments)
                # A thread that computes keeps the interpreter for 5 ms unless it offers it; and each offer costs.
                if time.perf_counter() - offered > _LONGEST_TURN_S:
                    time.sleep(0)
                    offered = time.perf_counter()
            for periodic in list(self._periodic):
                self._run(periodic.tick, is_last=is_last)

    def _run(self, call: Callable[..., None], *arguments: Any, **options: Any) -> None:
        try:
            call(*arguments, **options)
        except Exception as error:  # noqa: BLE001  # an observer that broke stops neither the others nor the guard
            failure = f"{getattr(call, '__qualname__', call)}: {type(error).__name__}"
            if failure not in self._failures:
                self._failures.add(failure)
                log.error("observing the guard failed, said once: %s", failure)  # noqa: TRY400  # may quote

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                atexit.register(self.flush, is_last=True)
                self._thread = threading.Thread(target=self._loop, name="ctd-observe", daemon=True)
                self._thread.start()

    def _loop(self) -> None:
        while True:
            time.sleep(self._every_s)
            self.flush()


RELAY: Final = Relay()
"""The one relay of this process: what guards of several policies share, such as a file, has one thread to write it."""
