"""Totals of a counter, kept in the process and read at each export."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import final

from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["Totals"]

Values = tuple[str, ...]


@final
class Totals:
    """Totals by attributes since the process started. Thread-safe.

    An observable counter reads them. A total therefore exists at 0 before the first event, and an SDK that is set up
    after the guard exports all of them. A counter that first appears at 1 has no increase in Prometheus: the first
    event would raise no alert.

    Args:
        names: Names of the attributes, in the order of their values.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._lock = threading.Lock()
        self._totals: dict[Values, int] = {}
        self._expected: weakref.WeakKeyDictionary[object, tuple[Values, ...]] = weakref.WeakKeyDictionary()

    def expect(self, owner: object, values: Iterable[Values]) -> None:
        """Let totals exist at 0.

        Args:
            owner: The object that counts them. Totals that are still 0 end with it, so that reloads leave none.
            values: Attribute values of each total.
        """
        with self._lock:
            self._expected[owner] = tuple(tuple(map(str, each)) for each in values)

    def add(self, amount: int, *values: str) -> None:
        """Add to the total of these attribute values."""
        with self._lock:
            self._totals[values] = self._totals.get(values, 0) + amount

    def observe(self, _: CallbackOptions) -> list[Observation]:
        """Return all totals. Called by the SDK."""
        with self._lock:
            totals = {values: 0 for expected in list(self._expected.values()) for values in expected} | self._totals
        return [Observation(total, dict(zip(self._names, values, strict=True))) for values, total in totals.items()]
