"""The sink that counts requests for a pace, and those of their calls that its rule has not counted."""

from __future__ import annotations

from typing import Final

from ctd_guardrail.observability.events import Event, Origin, Served
from ctd_guardrail.policy.pace import Pace

__all__ = ["PaceSink"]


class PaceSink:
    """Counts requests for a pace. The paced rule itself counts the calls that it makes, before they are made.

    Args:
        pace: The pace. Requests under another budget and self-tests do not count.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace: Final = pace

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Served(calls=calls, origin=Origin.CONFIGURED, by_rule=by_rule):
                self._pace.count_request(calls - by_rule)
