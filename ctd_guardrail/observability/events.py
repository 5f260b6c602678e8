"""The events of a guard. A cascade emits them and knows nothing of who reads them.

A new thing to observe is one class here and one ``case`` in each sink that reads it. A new sink is one function.
Events are named tuples: making one costs a request a third of what a frozen dataclass does.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from ctd_guardrail.decision import Decision

__all__ = [
    "Arrived",
    "Audited",
    "Decided",
    "Emit",
    "Event",
    "ExpertCalled",
    "Origin",
    "Recalled",
    "Routed",
    "Served",
    "Sink",
    "UnscreenedCall",
    "discard",
]


class Origin(StrEnum):
    """The kind of request that an event comes from.

    ``other_budget`` is a request under another budget than the configured one: it carries no information about the
    configured rate. ``self_test`` is one of the guard's own inputs, which are no traffic.
    """

    CONFIGURED = "configured"
    OTHER_BUDGET = "other_budget"
    SELF_TEST = "self_test"


class Decided(NamedTuple):
    """A decision was made.

    Attributes:
        decision: The decision.
        at: Seconds since 1970.
        unit: Digest of what was judged; None if it could not be read.
        request_id: The id of the request at the door; None if the door has none.
        origin: The kind of request.
    """

    decision: Decision
    at: float
    unit: str | None = None
    request_id: str | None = None
    origin: Origin = Origin.CONFIGURED


class Routed(NamedTuple):
    """The probes scored an input, and the rule assigned it to the probe or the expert.

    The event precedes the expert's answer. Its place in the order of events therefore does not depend on the scores.

    Attributes:
        d: Delegation value.
        is_delegated: Whether the input goes to the expert, by the rule or by the audit's coin.
        is_audited: Whether the audit's coin fell on it; an :class:`Audited` follows, however the request ends.
        origin: The kind of request.
    """

    d: float
    is_delegated: bool
    is_audited: bool
    origin: Origin = Origin.CONFIGURED


class Audited(NamedTuple):
    """An audit ended.

    Attributes:
        is_missed: Whether the cascade alone allows the input, and the expert calls it unsafe or gives no answer.
        origin: The kind of request.
    """

    is_missed: bool
    origin: Origin = Origin.CONFIGURED


class ExpertCalled(NamedTuple):
    """The expert was called, whether or not it answered.

    Attributes:
        attempts: Number of calls.
        tokens: Tokens billed for them, estimated from the text if the expert does not report them.
        origin: The kind of request.
    """

    attempts: int
    tokens: int
    origin: Origin = Origin.CONFIGURED


class Recalled(NamedTuple):
    """A turn had been judged before and was not judged again.

    Attributes:
        origin: The kind of request.
        is_newest: Whether it is the newest turn of its request. The coin of the audits falls for it.
        is_audited: Whether the coin fell on it; an :class:`Audited` follows, however the request ends.
    """

    origin: Origin = Origin.CONFIGURED
    is_newest: bool = False
    is_audited: bool = False


class Arrived(NamedTuple):
    """A request arrived. :class:`Served` follows with the same conversation, digest and time.

    The order of these events does not depend on the scores. That of the ends does: the expert takes its time.

    Attributes:
        conversation: Keyed hash that names the conversation.
        digest: Keyed hash of the conversation up to and including this turn.
        at: Seconds since 1970.
        origin: The kind of request.
    """

    conversation: str
    digest: str
    at: float
    origin: Origin = Origin.CONFIGURED


class Served(NamedTuple):
    """A request ended, also if it was cancelled. A request is one new turn, and what a budget counts.

    Attributes:
        conversation: Keyed hash that names the conversation.
        digest: Keyed hash of the conversation up to and including this turn.
        scores: Delegation values of the user's turns that this request judged, in order; +inf for one that the base
            model cannot read and that goes to the expert.
        calls: Units of this request that go to the expert: by the rule, by the coin, or unreadable.
        is_placed: Whether the conversation's earlier turns are remembered. False: its place is unknown.
        at: Seconds since 1970 when it arrived.
        origin: The kind of request.
        earlier: Number of earlier turns of the user that the request shows.
        by_rule: Units that the rule delegates; more than ``calls`` if a limit on the calls of a request withheld some.
    """

    conversation: str
    digest: str
    scores: tuple[float, ...]
    calls: int
    is_placed: bool
    at: float
    origin: Origin = Origin.CONFIGURED
    earlier: int = 0
    by_rule: int = 0


class UnscreenedCall(NamedTuple):
    """The main LLM was called without a verdict of the guard.

    Attributes:
        door: How the call was made: a word of :data:`ctd_guardrail.observability.metrics.DOORS`.
    """

    door: str


Event = Arrived | Decided | Routed | Audited | ExpertCalled | Recalled | Served | UnscreenedCall

Emit = Callable[[Event], None]
"""Reports an event. It is called on the thread of the request; it returns at once and raises nothing."""

Sink = Callable[[Event], None]
"""Reads events, one at a time, in the order in which they were emitted."""


def discard(event: Event) -> None:
    """Ignore an event."""
