"""The sink that counts requests, and calls that no threshold decides about, for a pace."""

from __future__ import annotations

from typing import Final

from ctd_guardrail.decision import Route
from ctd_guardrail.observability.events import Decided, Event, Origin, Routed, Served
from ctd_guardrail.policy.pace import Pace

__all__ = ["PaceSink"]


class PaceSink:
    """Counts for a pace. The paced rule itself counts the calls that it makes.

    An audit of an input that the rule delegates as well counts as two calls. The bound on the calls stays true.

    Args:
        pace: The pace. Requests under another budget and self-tests do not count.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace: Final = pace

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Served(origin=Origin.CONFIGURED):
                self._pace.count_request()
            case Routed(is_audited=True, origin=Origin.CONFIGURED):
                self._pace.count_call()
            case Decided(origin=Origin.CONFIGURED) if event.decision.route is Route.EXPERT and event.decision.d is None:
                self._pace.count_call()
