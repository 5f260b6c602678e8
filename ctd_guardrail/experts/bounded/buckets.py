"""Token buckets in time, and the store that keeps their levels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["BucketStore", "Demand", "MemoryStore"]

_SWEEP_AT_LEAST: Final = 1024


@dataclass(frozen=True, slots=True)
class Demand:
    """An amount to take from one bucket.

    Attributes:
        key: The bucket's name.
        rate: Refill in a second.
        capacity: Level of a full bucket. An unused bucket is full.
        amount: Amount to take; below 0: amount to return.
    """

    key: str
    rate: float
    capacity: float
    amount: float


class BucketStore(Protocol):
    """Keeps the levels of buckets. May be called from several threads and event loops at once."""

    async def take(self, demands: Sequence[Demand]) -> bool:
        """Take from all buckets or from none, and return whether it was taken.

        A bucket with less than the amount gives nothing. A bucket whose capacity is below the amount gives when it is
        full, and is then in debt.

        Raises:
            CapStoreError: The store cannot be reached.
        """
        ...

    async def charge(self, demands: Sequence[Demand]) -> None:
        """Take an amount that was spent already, whatever the levels are. Debts are refilled as usual.

        Raises:
            CapStoreError: The store cannot be reached.
        """
        ...


class MemoryStore:
    """Buckets of this process. Full buckets are dropped, which changes nothing.

    In any T seconds a bucket gives at most rate x T + capacity (Cruz 1991, IEEE Trans. Inf. Theory 37(1), eq. 1), and
    what :meth:`charge` adds comes out of later takes.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Level, and the time that it is of; a full bucket refills at the rate and capacity of its last demand.
        self._buckets: dict[str, tuple[float, float, Demand]] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    def __len__(self) -> int:
        """Return the number of buckets that are not known to be full."""
        return len(self._buckets)

    async def take(self, demands: Sequence[Demand]) -> bool:
        """Take from all buckets or from none, and say whether it was taken."""
        with self._lock:
            now = self._clock()
            levels = [self._level(demand, now) for demand in demands]
            if any(level < min(each.amount, each.capacity) for level, each in zip(levels, demands, strict=True)):
                return False
            self._put(demands, levels, now)
            return True

    async def charge(self, demands: Sequence[Demand]) -> None:
        """Take whatever the levels are."""
        with self._lock:
            now = self._clock()
            self._put(demands, [self._level(demand, now) for demand in demands], now)

    def _level(self, demand: Demand, now: float) -> float:
        if demand.key not in self._buckets:
            return demand.capacity
        level, then, _ = self._buckets[demand.key]
        return min(demand.capacity, level + (now - then) * demand.rate)

    def _put(self, demands: Sequence[Demand], levels: Sequence[float], now: float) -> None:
        for demand, level in zip(demands, levels, strict=True):
            self._buckets[demand.key] = (min(demand.capacity, level - demand.amount), now, demand)
        if len(self._buckets) >= self._sweep_at:
            self._buckets = {key: kept for key, kept in self._buckets.items() if not _is_full(*kept, now)}
            self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._buckets))


def _is_full(level: float, then: float, demand: Demand, now: float) -> bool:
    return level + (now - then) * demand.rate >= demand.capacity
