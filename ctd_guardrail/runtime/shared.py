"""Objects that several users in one process hold together, such as a loaded base model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

__all__ = ["Shared"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shared(Generic[K, V]):
    """Values by key. A value lives as long as anything outside holds it. Thread-safe.

    Each key has its own lock: a slow ``make`` delays callers of the same key only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: WeakValueDictionary[K, V] = WeakValueDictionary()
        self._making: WeakValueDictionary[K, Any] = WeakValueDictionary()  # a lock for each key
        self._is_closed = False

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, and make it if there is none. Concurrent callers of one key share one ``make``.

        Raises:
            RuntimeError: This is closed.
        """
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            value = self.find(key)
            if value is None:
                value = make()
                with self._lock:
                    self._values[key] = value
            if self._is_closed:
                _close(value)
                raise RuntimeError("the runtime is closed")
            return value

    def find(self, key: K) -> V | None:
        """Return the value of a key, or None if there is none."""
        with self._lock:
            return self._values.get(key)

    def forget(self, key: K) -> None:
        """Let the next caller of a key make a new value."""
        with self._lock:
            self._values.pop(key, None)

    def close(self) -> None:
        """Close every value that can be closed, also those that are being made now."""
        self._is_closed = True
        for value in self:
            _close(value)

    def __iter__(self) -> Iterator[V]:
        """Iterate over the values that are alive now."""
        with self._lock:
            return iter(list(self._values.values()))


def _close(value: object) -> None:
    close = getattr(value, "close", None)
    if close is not None:
        close()
