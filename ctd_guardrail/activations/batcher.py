"""Micro-batching in front of one device thread.

Any number of event loops and threads may call it. All work runs on one thread, so that kernels of different requests
never compete for the device. The batcher never waits for more items: those that arrive while the device is busy make
the next batches.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ctd_guardrail.activations.fair_queue import FairQueue
from ctd_guardrail.errors import OverloadedError

__all__ = ["MicroBatcher"]

# Results that are delivered in one turn of an event loop. Each wakes a task that goes on with its request.
_AT_ONCE: Final = 4

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Ticket(Generic[T, R]):
    """An item and the future of its result, which a thread or a task of an event loop awaits."""

    item: T
    future: Future[R] | asyncio.Future[R]
    loop: AbstractEventLoop | None

    def start(self) -> bool:
        """Return whether the caller still waits."""
        if isinstance(self.future, Future):
            return self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()

    def settle(self, outcome: R | BaseException) -> None:
        """Deliver the result. With an event loop, only its thread may call this."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class MicroBatcher(Generic[T, R]):
    """Runs the items of many callers in batches on its own thread.

    Args:
        run: Maps a batch to one result an item, in order. Called on the device thread only.
        cost: Cost of an item, for example its tokens.
        max_batch_cost: Largest cost of a batch. An item of a higher cost runs alone.
        max_queue: Largest number of waiting items. Further items are refused.
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
        self._queue: FairQueue[_Ticket[T, R]] = FairQueue()
        self._lock = threading.Lock()
        # Released to wake the idle thread. A condition would wake it only to wait for the other lock.
        self._work = threading.Lock()
        self._work.acquire()
        self._is_idle = False
        self._closed = False
        # The thread is a daemon, so an unclosed batcher does not keep the interpreter alive. The exit hook lets it
        # finish its batch, because a thread that ends inside a kernel can crash the process.
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

        In an empty queue they make the same batches every time, and so the same numbers to the last bit.

        Raises:
            OverloadedError: The queue has no room for them or the batcher is closed.
        """
        futures: list[Future[R]] = [Future() for _ in items]
        self._push([_Ticket(item, future, None) for item, future in zip(items, futures, strict=True)])
        return futures

    async def __call__(self, item: T) -> R:
        """Queue an item and wait for its result on the running event loop.

        Raises:
            OverloadedError: The queue is full or the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._push([_Ticket(item, future, loop)])
        return await future

    async def all(self, items: Sequence[T]) -> list[R]:
        """Queue several items at once, all or none, and wait for their results on the running event loop.

        Raises:
            OverloadedError: The queue has no room for them or the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._push([_Ticket(item, future, loop) for item, future in zip(items, futures, strict=True)])
        return await asyncio.gather(*futures)

    def close(self) -> None:
        """Finish the running batch, fail what is still queued, and stop the thread."""
        with self._lock:
            self._closed = True
            abandoned = self._queue.clear()
            is_idle, self._is_idle = self._is_idle, False
        if is_idle:
            self._work.release()
        # An exception, not a cancellation: a host treats a cancelled waiter as a cancelled request and continues.
        error = OverloadedError("the base model is shutting down")
        _deliver([(ticket, error) for ticket in abandoned if ticket.start()])
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _push(self, tickets: Sequence[_Ticket[T, R]]) -> None:
        costs = [self._cost(ticket.item) for ticket in tickets]
        with self._lock:
            if self._closed:
                raise OverloadedError("the base model is shutting down")
            # An empty queue takes more items than it holds; otherwise they could never run.
            if self._queue and len(self._queue) + len(tickets) > self._max_queue:
                raise OverloadedError(
                    f"{len(self._queue)} inputs are already waiting for the base model",
                    hint="Add replicas or a faster device, or shed load in front of the guard",
                )
            for ticket, cost in zip(tickets, costs, strict=True):
                self._queue.push(ticket, cost)
            is_idle, self._is_idle = self._is_idle, False
        if is_idle:
            self._work.release()

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run_batch(batch)
            # An idle thread must not keep the last batch's items and results alive.
            del batch

    def _next_batch(self) -> list[_Ticket[T, R]] | None:
        while True:
            with self._lock:
                if self._closed:
                    return None
                if self._queue:
                    batch = self._queue.take(self._max_batch_cost)
                    break
                self._is_idle = True
            self._work.acquire()
        return [ticket for ticket in batch if ticket.start()]

    def _run_batch(self, batch: Sequence[_Ticket[T, R]]) -> None:
        try:
            results = self._run([ticket.item for ticket in batch])
        except BaseException as error:  # noqa: BLE001  # after any error, no caller may wait for ever
            _deliver([(ticket, error) for ticket in batch])
        else:
            _deliver(list(zip(batch, results, strict=True)))


def _deliver(outcomes: Sequence[tuple[_Ticket[T, R], R | BaseException]]) -> None:
    """Deliver results. Wakes each event loop once."""
    by_loop: dict[AbstractEventLoop, list[tuple[_Ticket[T, R], R | BaseException]]] = defaultdict(list)
    for ticket, outcome in outcomes:
        if ticket.loop is None:
            ticket.settle(outcome)
        else:
            by_loop[ticket.loop].append((ticket, outcome))
    for loop, settled in by_loop.items():
        # On a closed loop, no task waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, loop, settled)


def _settle(loop: AbstractEventLoop, outcomes: Sequence[tuple[_Ticket[T, R], R | BaseException]]) -> None:
    """Deliver some results now and the others in the next turn of the loop, so that other tasks run in between."""
    for ticket, outcome in outcomes[:_AT_ONCE]:
        ticket.settle(outcome)
    if len(outcomes) > _AT_ONCE:
        loop.call_soon(_settle, loop, outcomes[_AT_ONCE:])
