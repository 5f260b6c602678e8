"""A queue that chooses the next batch so that neither cheap nor expensive items starve."""

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

    Take the items that wait at one time, and count batches from 0. An item in batch k by order of arrival is in batch
    2k at the latest, so no item starves. An item in batch k by order of cost is in batch 2k + 1 at the latest. So at
    most one batch of expensive items precedes a cheap one. The cheapest items fill the remaining room of a batch.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._waiting: OrderedDict[int, tuple[int, T]] = OrderedDict()
        # Heap of (cost, number). An item that was taken by arrival stays in it until it reaches the top.
        self._by_cost: list[tuple[int, int]] = []
        self._is_turn_of_arrival = True

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return len(self._waiting)

    def push(self, item: T, cost: int) -> None:
        """Append an item."""
        number = next(self._numbers)
        self._waiting[number] = cost, item
        heappush(self._by_cost, (cost, number))

    def take(self, budget: int) -> list[T]:
        """Remove and return the next batch, cheapest first.

        The sum of its costs is at most the budget, except for a single item of a higher cost.
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
        # After a pause, equal items make equal batches.
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
