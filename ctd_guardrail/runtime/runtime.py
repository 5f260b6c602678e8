"""What the guards of one process share."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

from ctd_guardrail.runtime.io_thread import IoThread
from ctd_guardrail.runtime.memory import LocalMemory
from ctd_guardrail.runtime.shared import Shared

__all__ = ["Runtime"]

T = TypeVar("T")


class Runtime:
    """Threads, caches and shared objects of any number of guards. It lives until it is closed or the process ends.

    Hosts build one guard for each model name that they serve, and drop guards without closing them. So a guard owns
    nothing that costs much: it takes it from a runtime, by default from the one of the process.

    Attributes:
        io: Runs calls to remote experts, serving engines and stores.
        memory: Judgements and conversations of this process.
    """

    def __init__(self) -> None:
        self.io = IoThread()
        self.memory = LocalMemory()
        self._lock = threading.Lock()
        self._owned: dict[str, Any] = {}
        self._shared: dict[str, Shared[Any, Any]] = {}
        self._is_closed = False
        with _PROCESS.lock:
            _PROCESS.runtimes.add(self)
        atexit.register(self.close)

    @staticmethod
    def default() -> Runtime:
        """Return the runtime of this process: the one that guards use if they are given none."""
        with _PROCESS.default_lock:
            if _PROCESS.default is None or _PROCESS.default.is_closed:
                _PROCESS.default = Runtime()
            return _PROCESS.default

    @staticmethod
    def all() -> list[Runtime]:
        """Return the open runtimes of this process, for metrics that describe the process."""
        with _PROCESS.lock:
            return [runtime for runtime in _PROCESS.runtimes if not runtime.is_closed]

    @property
    def is_closed(self) -> bool:
        """Whether the runtime was closed."""
        return self._is_closed

    def own(self, what: str, make: Callable[[], T]) -> T:
        """Return an object of which a runtime has one, such as its queue of events. It is closed with the runtime.

        Args:
            what: Name of the object. One module uses it, and states its type.
            make: Makes it at the first call.

        Raises:
            RuntimeError: The runtime is closed.
        """
        with self._lock:
            if what not in self._owned:
                self._refuse_if_closed()
                self._owned[what] = make()
            owned: T = self._owned[what]
            return owned

    def shared(self, what: str) -> Shared[Any, Any]:
        """Return the shared objects of one kind.

        Args:
            what: Name of the kind, such as ``base models``. One module owns a kind, and states its types.

        Raises:
            RuntimeError: The runtime is closed.
        """
        with self._lock:
            self._refuse_if_closed()
            return self._shared.setdefault(what, Shared())

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError("the runtime is closed")

    def close(self) -> None:
        """Close models, connections and files, and end all threads. Closing again changes nothing.

        Guards of this runtime block every input from then on.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            parts = [*self._shared.values(), *self._owned.values()]
        for part in parts:
            close = getattr(part, "close", None)
            if close is not None:
                close()
        self.io.close()
        self.memory.clear()
        with _PROCESS.lock:
            _PROCESS.runtimes.discard(self)
        atexit.unregister(self.close)


class _Process:
    """The one mutable object of the process: its runtimes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.default_lock = threading.Lock()
        self.default: Runtime | None = None
        self.runtimes: WeakSet[Runtime] = WeakSet()


_PROCESS: Final = _Process()
