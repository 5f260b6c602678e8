"""The sinks that all guards of one configuration share: monitors, metrics and audit log."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

from opentelemetry.metrics import Meter

from ctd_guardrail.monitors.call_rate import CallRates
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.events import Sink
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.metrics import Metrics
from ctd_guardrail.observability.monitor_sink import MonitorSink
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.policy.pace import PacedRule
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared

__all__ = ["Watch", "shared_watch", "watches"]

_DELTA: Final = 0.05


class Watch:
    """The monitors, metrics and audit log of all guards of one configuration.

    Args:
        facts: Policy and budget.
        load_s: Seconds that loading took.
        paced: The rule at its pace; None: no pace is configured.
        kept: The monitors; None: only requests and calls are counted.
        audit_log: The audit log; None: there is none.
        meter: Where the metrics' instruments are made; None: in the process's meter provider.
        runtime: Owns the queue of events; None: the runtime of the process.

    Attributes:
        facts: The argument of the same name.
        load_s: The argument of the same name.
        paced: The argument of the same name.
        kept: The argument of the same name.
        audit_log: The argument of the same name.
        sinks: What reads the guards' events, on the queue's thread.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        load_s: float = 0.0,
        paced: PacedRule | None = None,
        kept: KeptMonitors | None = None,
        audit_log: AuditLog | None = None,
        meter: Meter | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._queue = event_queue(runtime)
        self.facts = facts
        self.load_s = load_s
        self.paced = paced
        self.kept = kept
        self.audit_log = audit_log
        self._monitor_sink = MonitorSink(kept, max_turns=facts.max_turns)
        self.sinks: tuple[Sink, ...] = (
            Metrics(facts.labels, meter=meter),
            *([] if audit_log is None else [audit_log]),
            self._monitor_sink,
        )
        self._queue.attend(self._monitor_sink)

    @property
    def rates(self) -> CallRates:
        """Requests and their calls: since the monitors began, or else since the start."""
        return self._monitor_sink.rates

    @property
    def left_out(self) -> int:
        """Requests that the alarms and the band leave out, because their conversation is not known from its start."""
        return self._monitor_sink.conversations.left_out

    def band(self) -> tuple[float, float]:
        """Return the band around the rate that alpha limits, valid at all times."""
        facts = self.facts
        return self.rates.band(
            _DELTA if self.kept is None else self.kept.monitors.settings.delta,
            max_turns=facts.max_turns,
            max_calls=facts.max_calls,
            is_per_conversation=facts.unit is BudgetUnit.CONVERSATION,
        )

    def report(self) -> dict[str, Any]:
        """Return the rates of calls, their band and the limit of the rate alarm, as plain JSON values."""
        facts, rates, limit = self.facts, self.rates, None
        if self.kept is not None:
            rate, kind = self.kept.monitors.settings.rate_limit
            limit = {"rate": rate, "kind": kind, "delta": self.kept.monitors.rate.delta}
        return {
            "unit": facts.unit,
            "max_turns": facts.max_turns,
            "requests": rates.requests,
            "left_out": self.left_out,
            "calls": rates.calls,
            "calls_per_request": rates.per_request,
            "calls_per_judged_turn": rates.per_turn,
            "calls_per_conversation": rates.per_conversation,
            "conversations": rates.conversations,
            "band": [bound if math.isfinite(bound) else None for bound in self.band()],
            "alarm_limit": limit,
        }

    @property
    def alarms(self) -> dict[str, int | None]:
        """For each alarm, the number of the conversation at which it was raised, or None."""
        return {} if self.kept is None else self.kept.monitors.alarms()

    def save(self) -> None:
        """Hand over all waiting events and save the monitors now."""
        self._queue.flush()
        if self.kept is not None:
            self.kept.save()

    def close(self) -> None:
        """Save, and close the files. Runs when the runtime is closed."""
        self.save()
        if self.audit_log is not None:
            self.audit_log.close()
        if self.kept is not None:
            self.kept.close()


def shared_watch(key: Hashable, make: Callable[[], Watch], *, runtime: Runtime | None = None) -> Watch:
    """Return the watch of a key. All guards of one configuration share it.

    Args:
        key: Whose decisions are watched together: the folder, the policy and all settings that bear on watching.
        make: Makes it if there is none.
        runtime: Holds the watches; None: the runtime of the process.
    """
    return _watches(runtime or Runtime.default()).get(key, make)


def watches() -> Iterator[Watch]:
    """Return all watches of this process."""
    return (watch for runtime in Runtime.all() for watch in _watches(runtime))


def _watches(runtime: Runtime) -> Shared[Hashable, Watch]:
    return runtime.shared("watches")
