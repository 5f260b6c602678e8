"""The sink that feeds the monitors."""

from __future__ import annotations

import weakref

from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.rate_band import DelegationCount
from ctd_guardrail.observability.events import Audited, Event, Origin, Routed

__all__ = ["MonitorSink"]


class MonitorSink:
    """Updates the monitors, and saves them now and then. Without monitors it counts the delegated share only.

    Args:
        kept: The monitors; None: there are none.
    """

    def __init__(self, kept: KeptMonitors | None) -> None:
        self._kept = kept
        self._count = DelegationCount()
        if kept is not None:
            # The last guard may go at any time, and nothing is lost.
            weakref.finalize(self, kept.save)

    @property
    def count(self) -> DelegationCount:
        """The delegated share: since the monitors began, or else since the start."""
        return self._count if self._kept is None else self._kept.monitors.count

    def __call__(self, event: Event) -> None:
        """Update the monitors. A request under another budget tells them its score, and nothing about the rate."""
        match event:
            case Routed() if event.origin is not Origin.SELF_TEST:
                delegated = event.is_delegated if event.origin is Origin.CONFIGURED else None
                if self._kept is not None:
                    self._kept.update(event.d, delegated=delegated, audited=event.is_audited)
                elif delegated is not None:
                    self._count.update(delegated=delegated)
            case Audited() if event.origin is Origin.CONFIGURED and self._kept is not None:
                self._kept.audited(missed=event.is_missed)

    def tick(self, *, is_last: bool) -> None:
        """Save the monitors if that is due. Runs on the queue's thread."""
        if self._kept is not None:
            self._kept.tick(is_last=is_last)
