"""The sink that feeds the monitors."""

from __future__ import annotations

import logging
import secrets
import weakref

from ctd_guardrail.monitors.arrivals import ArrivalOrder
from ctd_guardrail.monitors.call_rate import CallRates
from ctd_guardrail.monitors.conversations import OpenConversations, Request
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.observability.events import Arrived, Audited, Event, Origin, Recalled, Routed, Served

__all__ = ["MonitorSink"]

log = logging.getLogger(__name__)


class MonitorSink:
    """Updates the monitors, and saves them now and then. Without monitors it counts requests and calls only.

    Args:
        kept: The monitors; None: there are none.
        max_turns: Without monitors, the largest number of requests of a conversation.
    """

    def __init__(self, kept: KeptMonitors | None, *, max_turns: int = 1) -> None:
        self._kept = kept
        self._arrivals = ArrivalOrder()
        self._has_warned = False
        self._rates = CallRates()
        self._open = OpenConversations(seed=secrets.randbits(63), max_turns=max_turns)
        if kept is not None:
            # The last guard may go at any time, and nothing is lost.
            weakref.finalize(self, kept.save)

    @property
    def rates(self) -> CallRates:
        """Requests and their calls: since the monitors began, or else since the start."""
        return self._rates if self._kept is None else self._kept.monitors.rates

    @property
    def conversations(self) -> OpenConversations:
        """The conversations that have not ended."""
        return self._open if self._kept is None else self._kept.monitors.conversations

    def __call__(self, event: Event) -> None:
        """Update the monitors. A request under another budget counts for the scores, and not for the rate."""
        match event:
            case Arrived() if event.origin is not Origin.SELF_TEST:
                self._arrivals.begin(event.conversation, event.digest, event.at)
            case Served() if event.origin is not Origin.SELF_TEST:
                self._check_length(event)
                is_configured = event.origin is Origin.CONFIGURED
                for request in self._arrivals.end(
                    Request(*event[:6], earlier=event.earlier, is_configured=is_configured)
                ):
                    self._serve(request)
            case (
                Routed(is_audited=False, origin=Origin.CONFIGURED)
                | Recalled(is_newest=True, is_audited=False, origin=Origin.CONFIGURED)
            ) if self._kept is not None:
                self._kept.unaudited()
            case Audited(origin=Origin.CONFIGURED) if self._kept is not None:
                self._kept.audited(missed=event.is_missed)

    def tick(self, *, is_last: bool) -> None:
        """Save the monitors if that is due. Runs on the queue's thread."""
        if self._kept is not None:
            self._kept.tick(is_last=is_last)

    def _check_length(self, event: Served) -> None:
        """Warn once of a conversation that is longer than those of the calibration."""
        most = self.conversations.max_turns
        if event.is_placed and event.earlier >= most and not self._has_warned:
            self._has_warned = True
            log.warning(
                "a conversation has more turns than any of the calibration (%d): neither the certificate of the budget "
                "nor the alarms hold for such traffic. Calibrate on whole conversations, or set budget.max_turns",
                most,
            )

    def _serve(self, request: Request) -> None:
        if self._kept is not None:
            self._kept.update(request)
            return
        self._rates.update(request)
        for conversation in self._open.update(request):
            self._rates.close(conversation)
