"""The event loop that runs calls to remote experts, serving engines and stores.

Guardrail hosts create event loops as they need them, one for each synchronous call. A pooled connection, however,
belongs to the loop that opened it. One loop on its own thread outlives the loops of the host, so its connections are
reused by every caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

__all__ = ["AsyncClosable", "IoThread"]

T = TypeVar("T")

_CLOSE_S: Final = 1.0


class AsyncClosable(Protocol):
    """A client with connections."""

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class IoThread:
    """A daemon thread with a running event loop. It starts at the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._clients: weakref.WeakSet[AsyncClosable] = weakref.WeakSet()
        self._closing: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        self._is_closed = False

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the thread's loop. Cancelling the future cancels the coroutine.

        Raises:
            RuntimeError: The thread is closed.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        except RuntimeError:
            coroutine.close()
            raise

    def close_with(self, owner: object, client: AsyncClosable) -> weakref.finalize[[AsyncClosable], object]:
        """Close a client's connections when its owner is collected, or with the thread: hosts drop guards unclosed.

        Args:
            owner: The object that uses the client.
            client: The client; its connections belong to this thread's loop.

        Returns:
            The finalizer; detach it to close the client before.
        """
        with self._lock:
            self._clients.add(client)
        finalizer = weakref.finalize(owner, self._close_client, client)
        finalizer.atexit = False
        return finalizer

    def close(self) -> None:
        """Close all clients and stop the thread. Calls in progress are cancelled. Closing again changes nothing."""
        with self._lock:
            self._is_closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            clients = list(self._clients)
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close_all(clients), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _close_client(self, client: AsyncClosable) -> None:
        with contextlib.suppress(RuntimeError):  # the thread is closed, and its clients with it
            self.submit(self._close_one(client))

    async def _close_one(self, client: AsyncClosable) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._closing.add(task)
        await client.aclose()

    async def _close_all(self, clients: list[AsyncClosable]) -> None:
        """Cancel what still runs on the loop, then close the clients."""
        running = asyncio.all_tasks() - {asyncio.current_task()}
        # A cancelled `aclose` would leave sockets open, and a second one does nothing.
        for task in running - set(self._closing):
            task.cancel()
        pending = running | {asyncio.ensure_future(client.aclose()) for client in clients}
        if pending:
            done, _ = await asyncio.wait(pending, timeout=_CLOSE_S)
            for task in done:
                if not task.cancelled():
                    task.exception()  # of no interest any more

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the I/O thread is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="ctd-io", daemon=True)
                self._thread.start()
            return self._loop
