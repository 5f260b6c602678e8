"""Totals of a counter, kept in the process and read at each export."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import final

from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["Totals"]


@final
class Totals:
    """Totals by attributes since the process started. Thread-safe.

    An observable counter reads them. A total therefore exists at 0 before the first event, and an SDK that is set up
    after the guard exports all of them. A counter that first appears at 1 has no increase in Prometheus: the first
    event would raise no alert.

    Args:
        names: Names of the attributes, in the order in which their values are given.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, ...], int] = {}

    def expect(self, values: Iterable[tuple[str, ...]]) -> None:
        """Let totals exist, at 0 where nothing was counted yet."""
        with self._lock:
            for each in values:
                self._totals.setdefault(each, 0)

    def add(self, amount: int, *values: str) -> None:
        """Add to the total of these attribute values."""
        with self._lock:
            self._totals[values] = self._totals.get(values, 0) + amount

    def observe(self, _: CallbackOptions) -> list[Observation]:
        """Return all totals. Called by the SDK."""
        with self._lock:
            totals = list(self._totals.items())
        return [Observation(total, dict(zip(self._names, values, strict=True))) for values, total in totals]
