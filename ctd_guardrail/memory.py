"""What this process has judged already, so that no turn of a conversation is paid for twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from ctd_guardrail.decision import Decision

__all__ = ["JUDGED", "Memory"]

_CAPACITY: Final = 16_384


class Memory:
    """Decisions by policy and unit; the least recently used go first. Thread-safe.

    Only judgements of content are kept: a guard that could not do its work has judged nothing. No text is kept, only
    its hash.

    Args:
        capacity: Decisions that are kept, about half a kilobyte each.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._decisions: OrderedDict[tuple[str, str], Decision] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self._decisions)

    def get(self, policy: str, unit: str) -> Decision | None:
        """Return the decision about a unit, or None where there is none.

        Args:
            policy: Hash of all that decisions depend on beside the unit.
            unit: Digest of the unit.
        """
        with self._lock:
            decision = self._decisions.get((policy, unit))
            if decision is not None:
                self._decisions.move_to_end((policy, unit))
            return decision

    def put(self, policy: str, unit: str, decision: Decision) -> None:
        """Keep a decision, where it is a judgement of content."""
        if decision.reason.is_failure:
            return
        with self._lock:
            self._decisions[policy, unit] = decision
            self._decisions.move_to_end((policy, unit))
            if len(self._decisions) > self._capacity:
                self._decisions.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._decisions.clear()


JUDGED: Final = Memory()
"""The one memory of this process: a host makes several guards of one policy, one for each model that it serves."""
