"""Micro-batching in front of one device thread.

Callers may live on any number of event loops and threads; work runs on one thread, so that kernels of different
requests never compete for the device. The batcher is work-conserving: it never waits for company, and whatever has
queued up while the device was busy is the next batch.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from ctd_guardrail.errors import OverloadedError

__all__ = ["MicroBatcher"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class MicroBatcher(Generic[T, R]):
    """Runs items of many callers in batches, on one thread of its own.

    Args:
        run: Maps a batch to one result an item, in order. Called on the device thread only.
        cost: Cost of an item, for example its tokens.
        max_batch_cost: A batch is closed before it exceeds this. A dearer item runs alone.
        max_queue: Items that may wait; one more is refused.
        name: Name of the thread.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        *,
        cost: Callable[[T], int],
        max_batch_cost: int,
        max_queue: int = 1024,
        name: str = "ctd-device",
    ) -> None:
        self._run = run
        self._cost = cost
        self._max_batch_cost = max_batch_cost
        self._max_queue = max_queue
        self._queue: deque[tuple[T, Future[R]]] = deque()
        self._wakeup = threading.Condition()
        self._closed = False
        # A daemon, so that a forgotten batcher cannot keep the interpreter alive; the exit hook still lets it finish
        # its batch, because a thread that dies inside a kernel can crash the process.
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()
        close = weakref.WeakMethod(self.close)
        atexit.register(lambda: (method := close()) and method())

    def submit(self, item: T) -> Future[R]:
        """Queue an item.

        Cancelling the future before its batch starts takes the item out; it never reaches the device.

        Raises:
            OverloadedError: The queue is full or the batcher is closed.
        """
        return self.submit_all([item])[0]

    def submit_all(self, items: Sequence[T]) -> list[Future[R]]:
        """Queue several items at once, all or none.

        With nobody else in the queue they make the same batches every time, and so the same numbers to the last bit.

        Raises:
            OverloadedError: The queue has no room for them or the batcher is closed.
        """
        futures: list[Future[R]] = [Future() for _ in items]
        with self._wakeup:
            if self._closed:
                raise OverloadedError("the base model is shutting down")
            if len(self._queue) + len(items) > self._max_queue:
                raise OverloadedError(
                    f"{len(self._queue)} inputs are already waiting for the base model",
                    hint="Add replicas or a faster device, or shed load in front of the guard",
                )
            self._queue.extend(zip(items, futures, strict=True))
            self._wakeup.notify()
        return futures

    async def __call__(self, item: T) -> R:
        """Queue an item and wait for its result on the running event loop.

        Raises:
            OverloadedError: The queue is full or the batcher is closed.
        """
        return await asyncio.wrap_future(self.submit(item))

    def close(self) -> None:
        """Finish the running batch, fail what is still queued, and stop the thread."""
        with self._wakeup:
            self._closed = True
            abandoned = list(self._queue)
            self._queue.clear()
            self._wakeup.notify()
        for _, future in abandoned:
            # An exception, not a cancellation: hosts take a cancelled waiter for a cancelled request and go on.
            if future.set_running_or_notify_cancel():
                future.set_exception(OverloadedError("the base model is shutting down"))
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run_batch(batch)
            # An idle thread must not keep the last batch's items and results alive.
            del batch

    def _next_batch(self) -> list[tuple[T, Future[R]]] | None:
        with self._wakeup:
            while not self._queue and not self._closed:
                self._wakeup.wait()
            if self._closed:
                return None
            batch: list[tuple[T, Future[R]]] = []
            spent = 0
            while self._queue:
                item, future = self._queue[0]
                cost = self._cost(item)
                if batch and spent + cost > self._max_batch_cost:
                    break
                self._queue.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((item, future))
                    spent += cost
            return batch

    def _run_batch(self, batch: list[tuple[T, Future[R]]]) -> None:
        try:
            results = self._run([item for item, _ in batch])
        except BaseException as error:  # noqa: BLE001  # whatever happens here, no caller may wait for ever
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
