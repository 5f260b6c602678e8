"""What happens to observations on the relay's thread."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ctd_guardrail.decision import Decision

__all__ = ["Observation", "Sink"]


class Observation(NamedTuple):
    """A decision and its circumstances.

    Attributes:
        at: When it was made, seconds since 1970.
        decision: The decision.
        unit: Digest of what was judged; None where that could not be read.
        request_id: The id under which the door knows the request; None where it knows none.
    """

    at: float
    decision: Decision
    unit: str | None
    request_id: str | None


class Sink(Protocol):
    """One instrumentation. Always called on one thread at a time, in the order of the decisions; may be slow."""

    def decided(self, seen: Observation) -> None:
        """Take a decision."""
        ...

    def asked(self, attempts: int, tokens: int | None) -> None:
        """Take calls of the expert; see :meth:`Observer.asked`."""
        ...

    def recalled(self) -> None:
        """Take a turn that had been judged before."""
        ...
