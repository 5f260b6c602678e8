"""Decisions and answers that a process remembers, so that no turn of a conversation is judged twice."""

from __future__ import annotations

from typing import Final

from ctd_guardrail.decision import Decision
from ctd_guardrail.runtime.lru import LruCache

__all__ = ["AnswerCache", "DecisionCache"]

_CAPACITY: Final = 16_384


class DecisionCache:
    """Decisions by judgement key and unit; the least recently used are dropped first. Thread-safe.

    It keeps judgements of content only: a decision that a failure policy made is not one. It holds hashes and no text.

    Args:
        capacity: Largest number of decisions, about half a kilobyte each.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._decisions: LruCache[tuple[str, str], Decision] = LruCache(capacity)

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self._decisions)

    def get(self, judgement_key: str, unit: str) -> Decision | None:
        """Return the decision about a unit, or None if there is none.

        Args:
            judgement_key: Hash of everything that decisions depend on beside the unit.
            unit: Digest of the unit.
        """
        return self._decisions.get((judgement_key, unit))

    def put(self, judgement_key: str, unit: str, decision: Decision) -> None:
        """Keep a decision, unless a failure policy made it."""
        if not decision.reason.is_failure:
            self._decisions.put((judgement_key, unit), decision)

    def clear(self) -> None:
        """Drop all decisions."""
        self._decisions.clear()


class AnswerCache:
    """Hashes of the answers that the main LLM gave in this process. Thread-safe.

    Args:
        capacity: Largest number of answers, about a quarter of a kilobyte each.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._digests: LruCache[str, bool] = LruCache(capacity)

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._digests)

    def __contains__(self, digest: str) -> bool:
        """Return whether the main LLM gave an answer with this digest."""
        return self._digests.get(digest) is not None

    def add(self, digest: str) -> None:
        """Keep the digest of an answer."""
        self._digests.put(digest, value=True)

    def clear(self) -> None:
        """Drop all digests."""
        self._digests.clear()
