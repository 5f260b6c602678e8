"""The event loop on which calls to remote experts and serving engines run.

Guardrail hosts make event loops as they need them, one for each synchronous call, while a pooled connection belongs to
the loop that opened it. One loop on a thread of its own outlives them all, so connections are reused whoever calls.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["IO_THREAD", "IoThread"]

T = TypeVar("T")


class IoThread:
    """A daemon thread with a running event loop, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the interpreter is on its way out, and the loop gone."""
        return self._loop is not None and self._loop.is_closed()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the thread's loop. Cancelling the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._loop.run_forever, name="ctd-io", daemon=True)
                thread.start()
                atexit.register(_stop, self._loop, thread)
            return self._loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


IO_THREAD = IoThread()
"""The one thread of this process: hosts have no shutdown hook by which threads of single clients could end."""
