"""What this process has judged or seen said already, so that no turn of a conversation is paid for twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from ctd_guardrail.decision import Decision

__all__ = ["JUDGED", "SAID", "Answers", "Memory"]

_CAPACITY: Final = 16_384

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Recent(Generic[_Key, _Value]):
    """A mapping of bounded size; the least recently used entries go first. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> _Value | None:
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def put(self, key: _Key, value: _Value) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class Memory:
    """Decisions by judgement key and unit; the least recently used go first. Thread-safe.

    Only judgements of content are kept: a guard that could not do its work has judged nothing. No text is kept, only
    its hash.

    Args:
        capacity: Decisions that are kept, about half a kilobyte each.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._decisions: _Recent[tuple[str, str], Decision] = _Recent(capacity)

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self._decisions)

    def get(self, judgement_key: str, unit: str) -> Decision | None:
        """Return the decision about a unit, or None where there is none.

        Args:
            judgement_key: Hash of everything that decisions depend on beside the unit.
            unit: Digest of the unit.
        """
        return self._decisions.get((judgement_key, unit))

    def put(self, judgement_key: str, unit: str, decision: Decision) -> None:
        """Keep a decision, where it is a judgement of content."""
        if not decision.reason.is_failure:
            self._decisions.put((judgement_key, unit), decision)

    def clear(self) -> None:
        """Forget everything."""
        self._decisions.clear()


class Answers:
    """Answers that the main LLM gave in this process, by the hash of their text. Thread-safe.

    Args:
        capacity: Answers that are kept, about a quarter of a kilobyte each.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._digests: _Recent[str, bool] = _Recent(capacity)

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._digests)

    def __contains__(self, digest: str) -> bool:
        """Return whether an answer with this digest was given."""
        return self._digests.get(digest) is not None

    def add(self, digest: str) -> None:
        """Keep an answer's digest."""
        self._digests.put(digest, value=True)

    def clear(self) -> None:
        """Forget everything."""
        self._digests.clear()


JUDGED: Final = Memory()
"""The one memory of this process: a host makes several guards of one policy, one for each model that it serves."""

SAID: Final = Answers()
"""The answers that hosts of this process noted; what the main LLM said does not depend on a policy."""
