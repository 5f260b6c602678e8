"""A circuit breaker: an expert that keeps failing is not called for a while, then tried carefully."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from ctd_guardrail.errors import BreakerOpenError

__all__ = ["BreakerState", "CircuitBreaker", "Health"]

log = logging.getLogger(__name__)

# Long enough for a restart or a burst of rate limits to pass; short enough that one call at a time costs nothing.
_OPEN_S: Final = 10.0


class BreakerState(StrEnum):
    """Closed: calls pass. Open: no call passes. Half-open: one call at a time passes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Health(StrEnum):
    """What a call shows about the expert; ``unknown`` if the expert did not cause its end."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


class CircuitBreaker:
    """Opens after a run of failures, and closes after one success. Serves any number of threads and event loops.

    Nygard, *Release It!*, 2007, chapter 5. It differs from common libraries in two ways. At half-open it makes one
    call at a time. A call that shows nothing about the expert, such as one whose client left, does not count.

    Args:
        failures: Failures in a row that open it.
        health: Returns what an exception shows about the expert; a call without an exception is good.
        open_s: Seconds until it may be tried again.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        failures: int,
        health: Callable[[BaseException], Health],
        open_s: float = _OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._open_s = open_s
        self._health = health
        self._clock = clock
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        # A call that began in an earlier state does not count in a later one.
        self._era = 0
        self._failed = 0
        self._is_tried = False
        self._opened_at = 0.0

    @property
    def state(self) -> BreakerState:
        """The state. An open breaker stays open until a call tries the expert."""
        return self._state

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call inside this context.

        Raises:
            BreakerOpenError: No call may be made now.
        """
        era = self._enter()
        try:
            yield
        except BaseException as error:
            self._leave(era, self._health(error))
            raise
        self._leave(era, Health.GOOD)

    def _enter(self) -> int:
        with self._lock:
            if self._state is BreakerState.OPEN and self._clock() - self._opened_at >= self._open_s:
                self._become(BreakerState.HALF_OPEN)
            if self._state is BreakerState.OPEN or self._is_tried:
                raise BreakerOpenError(
                    "the expert failed too often, and the circuit breaker stops calls for a while",
                    hint="Repair the expert; the breaker tries it again by itself",
                )
            self._is_tried = self._state is BreakerState.HALF_OPEN
            return self._era

    def _leave(self, era: int, health: Health) -> None:
        with self._lock:
            if era != self._era:
                return
            is_trial = self._state is BreakerState.HALF_OPEN
            self._is_tried = False
            if health is Health.GOOD:
                self._failed = 0
                if is_trial:
                    self._become(BreakerState.CLOSED)
            elif health is Health.BAD:
                self._failed += 1
                if is_trial or self._failed >= self._failures:
                    self._opened_at = self._clock()
                    self._become(BreakerState.OPEN)

    def _become(self, state: BreakerState) -> None:
        log.warning("breaker of the expert: %s", state)
        self._state = state
        self._era += 1
        self._failed = 0
        self._is_tried = False
