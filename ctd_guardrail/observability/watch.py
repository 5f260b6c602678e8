"""What the guards of one configuration have in common: their monitors, metrics and audit log."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from ctd_guardrail.decision import Decision
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.rate_band import DelegationCount
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.metrics import Metrics
from ctd_guardrail.observability.request import REQUEST_ID, SELF_TEST
from ctd_guardrail.observability.sink import Observation, Sink
from ctd_guardrail.runtime.relay import RELAY

__all__ = ["Watch", "WatchObserver", "shared_watch", "watches"]

_DELTA: Final = 0.05


class Watch:
    """Takes the decisions of guards, and has them told to monitors, metrics and audit log on the relay's thread.

    Args:
        facts: Policy and budget.
        load_s: Seconds that loading took.
        kept: The monitors; None: the delegated share is counted and nothing more.
        audit_log: The audit log; None: none is kept.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        load_s: float = 0.0,
        kept: KeptMonitors | None = None,
        audit_log: AuditLog | None = None,
    ) -> None:
        self.facts = facts
        self.load_s = load_s
        self.kept = kept
        self.audit_log = audit_log
        self._metrics = Metrics(facts.labels)
        self._sinks: tuple[Sink, ...] = (self._metrics, *([] if audit_log is None else [audit_log]))
        self._count = DelegationCount()
        if kept is not None:
            # Whoever lets go of the last guard loses nothing.
            weakref.finalize(self, kept.save)
        RELAY.attend(self)

    def observer(self, *, is_configured: bool) -> WatchObserver:
        """Return what a guard's tally tells.

        Args:
            is_configured: Whether its decisions are made under the configured budget.
        """
        return WatchObserver(self, is_configured=is_configured)

    @property
    def count(self) -> DelegationCount:
        """The delegated share: since the monitors began, or else since the start."""
        return self._count if self.kept is None else self.kept.monitors.count

    @property
    def band_delta(self) -> float:
        """Probability that the band around the delegated share is ever wrong."""
        return _DELTA if self.kept is None else self.kept.monitors.delta

    @property
    def alarms(self) -> dict[str, int | None]:
        """For each alarm, the number of the input at which it was raised, or None."""
        return {} if self.kept is None else self.kept.monitors.alarms()

    def take(self, seen: Observation) -> None:
        """Tell all of a decision. On the relay's thread."""
        for sink in self._sinks:
            sink.decided(seen)

    def take_score(self, d: float, delegated: bool | None, audited: bool) -> None:  # noqa: FBT001  # the relay's call
        """Tell the monitors of an input; delegated is None where it says nothing about the budget."""
        if self.kept is not None:
            self.kept.update(d, delegated=delegated, audited=audited)
        elif delegated is not None:
            self._count.update(delegated=delegated)

    def take_audit(self, missed: bool) -> None:  # noqa: FBT001  # likewise
        """Tell the monitors how an audit came out."""
        if self.kept is not None:
            self.kept.audited(missed=missed)

    def take_calls(self, attempts: int, tokens: int | None) -> None:
        """Tell all of calls of the expert. On the relay's thread."""
        for sink in self._sinks:
            sink.asked(attempts, tokens)

    def take_recalled(self) -> None:
        """Tell all of a turn that had been judged before. On the relay's thread."""
        for sink in self._sinks:
            sink.recalled()

    def count_unscreened(self, door: str) -> None:
        """Count a call of the main LLM without a verdict. On any thread: the relay may drop what waits."""
        self._metrics.unscreened(door)

    def tick(self, *, is_last: bool) -> None:
        """Do what is due. On the relay's thread."""
        if self.kept is not None:
            self.kept.tick(is_last=is_last)

    def close(self) -> None:
        """Write all that is known, now."""
        RELAY.flush()
        if self.kept is not None:
            self.kept.save()


class WatchObserver:
    """The request's side of a watch: hands over and returns.

    Args:
        watch: The watch.
        is_configured: Whether decisions are made under the configured budget.
    """

    def __init__(self, watch: Watch, *, is_configured: bool) -> None:
        self.watch = watch
        self._is_configured = is_configured

    def decided(self, decision: Decision, unit: str | None) -> None:
        """Hand over a decision, unless it is a self-test's: that is no traffic."""
        request_id = REQUEST_ID.get()
        if request_id is not SELF_TEST:
            RELAY.put(self.watch.take, Observation(time.time(), decision, unit, request_id))

    def routed(self, d: float, *, delegated: bool, audited: bool) -> None:
        """Hand over a score."""
        if REQUEST_ID.get() is not SELF_TEST:
            RELAY.put(self.watch.take_score, d, delegated if self._is_configured else None, audited)

    def audited(self, *, missed: bool) -> None:
        """Hand over an audit."""
        if self._is_configured and REQUEST_ID.get() is not SELF_TEST:
            RELAY.put(self.watch.take_audit, missed)

    def asked(self, attempts: int, tokens: int | None) -> None:
        """Hand over calls of the expert; those of a self-test cost as much as others."""
        RELAY.put(self.watch.take_calls, attempts, tokens)

    def recalled(self) -> None:
        """Hand over a turn that had been judged before."""
        if REQUEST_ID.get() is not SELF_TEST:
            RELAY.put(self.watch.take_recalled)

    def unscreened(self, door: str) -> None:
        """Count a call of the main LLM without a verdict, at once."""
        self.watch.count_unscreened(door)


class _Registry:
    """The watches of this process. A host may build one guard for each model that requests name; they share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: weakref.WeakValueDictionary[Hashable, Watch] = weakref.WeakValueDictionary()

    def get(self, key: Hashable, make: Callable[[], Watch]) -> Watch:
        with self._lock:
            watch = self._watches.get(key)
            if watch is None:
                watch = self._watches[key] = make()
            return watch

    def __iter__(self) -> Iterator[Watch]:
        with self._lock:
            return iter(list(self._watches.values()))


_REGISTRY: Final = _Registry()


def shared_watch(key: Hashable, make: Callable[[], Watch]) -> Watch:
    """Return the process-wide watch of a key; the same one as long as somebody holds it.

    Args:
        key: Whose decisions are watched together: the folder, the policy and all settings that bear on watching.
        make: Makes it where there is none.
    """
    return _REGISTRY.get(key, make)


def watches() -> Iterator[Watch]:
    """Return all watches of this process."""
    return iter(_REGISTRY)
