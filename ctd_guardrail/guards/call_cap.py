"""A cap on expert calls in time: at most so many a minute, whatever the traffic and whatever the scores."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.guards.token_bucket import TokenBucket

__all__ = ["CallCap", "shared_call_cap"]

_CALLS_PER_TICK: Final = 0.5


class CallCap:
    """Lets at most calls (T / per_s) + burst + 1/2 calls through in any T seconds. Thread-safe.

    A :class:`TokenBucket` whose clock are ticks of time in place of requests; a tick refills half a call.

    Args:
        calls: Calls in ``per_s`` seconds, in the long run.
        per_s: Seconds.
        burst: Calls that may be made at once after a quiet time; None: as many as ``calls``.
        clock: Seconds that never go back.

    Raises:
        ConfigError: A value is not positive.
    """

    def __init__(
        self, calls: int, per_s: float, burst: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if calls < 1 or not per_s > 0.0:
            raise ConfigError("the cap takes at least one call in a positive time", key="cap")
        self._tick_s = _CALLS_PER_TICK * per_s / calls
        self._bucket = TokenBucket(_CALLS_PER_TICK, calls if burst is None else burst)
        self._clock = clock
        self._start = clock()
        self._ticks = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Return whether one more call may be made now, and count it."""
        with self._lock:
            ticks = int((self._clock() - self._start) / self._tick_s)
            self._bucket.refill(ticks - self._ticks)
            self._ticks = ticks
            return self._bucket.take()


class _Registry:
    """The caps of this process. A host may build one guard for each model that requests name; they share a cap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caps: weakref.WeakValueDictionary[tuple[str, int, float, int | None], CallCap] = (
            weakref.WeakValueDictionary()
        )

    def get(self, scope: str, calls: int, per_s: float, burst: int | None) -> CallCap:
        key = (scope, calls, per_s, burst)
        with self._lock:
            cap = self._caps.get(key)
            if cap is None:
                cap = self._caps[key] = CallCap(calls, per_s, burst)
            return cap


_REGISTRY: Final = _Registry()


def shared_call_cap(scope: str, calls: int, per_s: float, burst: int | None = None) -> CallCap:
    """Return the process-wide cap of a scope; the same one as long as somebody holds it.

    Args:
        scope: Whose calls are counted together, such as a configuration's folder.
        calls: As in :class:`CallCap`.
        per_s: As in :class:`CallCap`.
        burst: As in :class:`CallCap`.
    """
    return _REGISTRY.get(scope, calls, per_s, burst)
