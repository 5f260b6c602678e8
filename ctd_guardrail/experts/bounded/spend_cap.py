"""Caps on the calls and tokens of the expert in time, for all principals together and for each of them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ctd_guardrail.errors import ExpertCapError
from ctd_guardrail.experts.bounded.buckets import BucketStore, Demand

__all__ = ["Cap", "SpendCaps"]

_ALL: Final = "all"
_UNKNOWN: Final = "nobody"
_OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Cap:
    """One limit.

    Attributes:
        unit: What is counted.
        amount: Largest number in ``per_s`` seconds, in the long run.
        per_s: The time that ``amount`` is for.
        burst: Largest number at once after a quiet time.
        per_principal: Whether each principal has a limit of its own.
    """

    unit: Literal["calls", "tokens"]
    amount: int
    per_s: float
    burst: int
    per_principal: bool

    @property
    def name(self) -> str:
        """The name of the limit. It holds all of its values, so a changed limit starts with full buckets."""
        whose = "each" if self.per_principal else _ALL
        return f"{self.amount}-{self.unit}-per-{self.per_s:g}-s-burst-{self.burst}-{whose}"


class SpendCaps:
    """Several caps. A call needs room under all of them. Serves any number of threads and event loops.

    Args:
        caps: The caps.
        store: Keeps the buckets.
        max_principals: Largest number of principals with buckets of their own. All others share one: a client that
            invents names gets no more than one of them.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        caps: Sequence[Cap],
        store: BucketStore,
        *,
        max_principals: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caps = tuple(caps)
        self._store = store
        self._max_principals = max_principals
        self._clock = clock
        # The place of a principal is free as soon as its buckets are full again.
        self._idle_s = max((cap.per_s * cap.burst / cap.amount for cap in caps), default=0.0)
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    async def take(self, principal: str | None, *, tokens: int) -> None:
        """Take one call and its tokens.

        Args:
            principal: On whose behalf; None: unknown. All unknown principals share one bucket.
            tokens: Estimate of its tokens.

        Raises:
            ExpertCapError: A cap has not enough left.
            CapStoreError: The store cannot be reached.
        """
        if not await self._store.take(self._demands(principal, calls=1, tokens=tokens)):
            raise ExpertCapError(
                "a cap on the spend of the expert is used up", hint="Raise `cap`, or find the caller that uses it up"
            )

    async def settle(self, principal: str | None, *, calls: int, tokens: int) -> None:
        """Charge the difference between the cost and the amount that was taken; below 0: return it.

        Raises:
            CapStoreError: The store cannot be reached.
        """
        if calls or tokens:
            await self._store.charge(self._demands(principal, calls=calls, tokens=tokens))

    def _demands(self, principal: str | None, *, calls: int, tokens: int) -> list[Demand]:
        amounts = {"calls": calls, "tokens": tokens}
        return [
            Demand(
                key=f"{cap.name}:{self._slot(principal) if cap.per_principal else _ALL}",
                rate=cap.amount / cap.per_s,
                capacity=float(cap.burst),
                amount=float(amounts[cap.unit]),
            )
            for cap in self._caps
        ]

    def _slot(self, principal: str | None) -> str:
        if principal is None:
            return _UNKNOWN
        # Names of users reach no store.
        digest = hashlib.blake2b(principal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        now = self._clock()
        with self._lock:
            while self._seen and now - next(iter(self._seen.values())) >= self._idle_s:
                self._seen.popitem(last=False)
            if digest not in self._seen and len(self._seen) >= self._max_principals:
                return _OTHERS
            self._seen[digest] = now
            self._seen.move_to_end(digest)
        return digest
