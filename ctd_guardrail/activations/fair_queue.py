"""Which of the waiting items are the next batch: fair to cheap and to dear ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Batches that take turns: one in order of arrival, one of the cheapest.

    Of what waits at one time, an item that plain order of arrival would put into batch k (counted from 0) is in batch
    2k at the latest: nothing starves. An item that order of cost would put into batch k is in batch 2k + 1 at the
    latest: before a cheap one there is never more than one batch of dear ones, however many of them came first. Room
    that is left in a batch is filled with the cheapest, so no turn leaves the device idle.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._waiting: OrderedDict[int, tuple[int, T]] = OrderedDict()
        # Of (cost, number); what was taken by arrival stays until it comes up.
        self._by_cost: list[tuple[int, int]] = []
        self._is_turn_of_arrival = True

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._waiting)

    def push(self, item: T, cost: int) -> None:
        """Let an item wait."""
        number = next(self._numbers)
        self._waiting[number] = cost, item
        heappush(self._by_cost, (cost, number))

    def take(self, budget: int) -> list[T]:
        """Remove and return the next batch, cheapest first.

        Its costs sum to at most the budget, or it is one item that costs more by itself.
        """
        if len(self._waiting) == 1:
            self._is_turn_of_arrival = True
            return self.clear()
        batch: list[tuple[int, int, T]] = []
        spent = 0
        orders = (self._oldest(), self._cheapest()) if self._is_turn_of_arrival else (self._cheapest(),)
        for order in orders:
            for number in order:
                cost, item = self._waiting[number]
                if batch and spent + cost > budget:
                    break
                del self._waiting[number]
                batch.append((cost, number, item))
                spent += cost
        # What is queued anew after a pause makes the same batches every time.
        self._is_turn_of_arrival = not (self._is_turn_of_arrival and self._waiting)
        if not self._waiting:
            self._by_cost.clear()
        return [item for _, _, item in sorted(batch, key=lambda entry: entry[:2])]

    def clear(self) -> list[T]:
        """Remove and return all items, in order of arrival."""
        items = [item for _, item in self._waiting.values()]
        self._waiting.clear()
        self._by_cost.clear()
        return items

    def _oldest(self) -> Iterator[int]:
        while self._waiting:
            yield next(iter(self._waiting))

    def _cheapest(self) -> Iterator[int]:
        while self._by_cost:
            _, number = self._by_cost[0]
            if number in self._waiting:
                yield number
            if number not in self._waiting:
                heappop(self._by_cost)
