"""A bulkhead: a limit on the calls under way, and on the callers that wait."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from ctd_guardrail.errors import ExpertOverloadedError

__all__ = ["Bulkhead"]


class Bulkhead:
    """Slots for calls, given out in the order of asking. Serves any number of threads and event loops.

    A semaphore of asyncio belongs to one loop, and does not limit the number of waiting callers.

    Args:
        calls: Slots.
        waiting: Callers that may wait for one.
    """

    def __init__(self, calls: int, waiting: int) -> None:
        self._free = calls
        self._max_waiting = waiting
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Take a slot, or wait until one is free. A cancelled caller holds none.

        Raises:
            ExpertOverloadedError: The largest number of callers is waiting already.
        """
        with self._lock:
            if self._free:
                self._free -= 1
                return
            if len(self._waiting) >= self._max_waiting:
                raise ExpertOverloadedError(
                    f"{self._max_waiting} inputs are waiting for the expert already",
                    hint="Lower alpha, raise max_concurrency, or use a faster expert",
                )
            turn: Future[None] = Future()
            # A cancelled waiter cannot cancel it. The lock settles whether its turn had come.
            turn.set_running_or_notify_cancel()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            with self._lock:
                had_its_turn = turn not in self._waiting
                if not had_its_turn:
                    self._waiting.remove(turn)
            if had_its_turn:
                self.release()
            raise

    def release(self) -> None:
        """Return a slot. The caller that has waited longest gets it."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            turn = self._waiting.popleft()
        turn.set_result(None)
