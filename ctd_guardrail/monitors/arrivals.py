"""The order in which requests arrived, whatever the order in which they end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ctd_guardrail.monitors.conversations import Request

__all__ = ["ArrivalOrder"]

# No request takes this long. Its end was lost.
_LONGEST_S: Final = 600.0

_Key = tuple[str, str, float]


@dataclass(slots=True, eq=False)
class _Arrival:
    key: _Key
    request: Request | None = None


class ArrivalOrder:
    """Hands on requests that have ended, in order of their arrival.

    A request that waits for the expert ends late. In order of the end, calls would pile up after each peak of the
    traffic, and an alarm would take them for a higher rate.

    Requests of equal conversation, digest and time of arrival may change places, because they are equal.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Arrival] = deque()
        self._open: dict[_Key, deque[_Arrival]] = {}

    def begin(self, conversation: str, digest: str, at: float) -> None:
        """Note that a request has arrived."""
        self._add((conversation, digest, at))

    def end(self, request: Request) -> list[Request]:
        """Take a request that has ended. Return those that are next in order."""
        key = request.conversation, request.digest, request.at
        if key not in self._open:  # its arrival was lost
            self._add(key)
        self._take(key).request = request
        ready = []
        while self._waiting:
            first = self._waiting[0]
            if first.request is not None:
                ready.append(first.request)
            elif first.key[2] + _LONGEST_S > request.at:
                break
            else:
                self._take(first.key)
            self._waiting.popleft()
        return ready

    def _add(self, key: _Key) -> None:
        arrival = _Arrival(key)
        self._waiting.append(arrival)
        self._open.setdefault(key, deque()).append(arrival)

    def _take(self, key: _Key) -> _Arrival:
        arrivals = self._open[key]
        arrival = arrivals.popleft()
        if not arrivals:
            del self._open[key]
        return arrival
