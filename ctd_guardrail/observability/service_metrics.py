"""OpenTelemetry metrics of a service: readiness, requests under way, connections, and what was refused at the door."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final, Protocol
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ctd_guardrail.observability.metrics import default_meter
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["ObservedService", "register", "show_service"]


class ObservedConnections(Protocol):
    """Counts of a service's connections."""

    open: int
    closed: Counter[str]


class ObservedService(Protocol):
    """The part of a service that metrics read, on the thread of the exporter."""

    refused: Counter[int]
    reloads: int

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come here."""
        ...

    @property
    def running(self) -> int:
        """Requests under way."""
        ...

    @property
    def connections(self) -> ObservedConnections:
        """Connections that are open, and those that the service closed."""
        ...


_STATUSES: Final = (400, 401, 404, 405, 408, 413, 422, 500, 503)
"""The statuses whose counters exist at 0 from the start, so that the first refusal is an increase."""


def show_service(service: ObservedService) -> None:
    """Export the metrics of a service until it is garbage-collected. A process usually has one."""
    _services_of(Runtime.default()).add(service)
    register(default_meter())


def _services() -> Iterator[ObservedService]:
    return (service for runtime in Runtime.all() for service in list(_services_of(runtime)))


def _services_of(runtime: Runtime) -> WeakSet[ObservedService]:
    return runtime.own("services", WeakSet)


@cache
def register(meter: Meter) -> None:
    """Export the metrics of all services of this process; once for each meter."""
    meter.create_observable_gauge("ctd.ready", [_ready], description="1 where traffic should come here.")
    meter.create_observable_gauge("ctd.requests.running", [_running], description="Requests under way.")
    meter.create_observable_counter(
        "ctd.requests.refused", [_refused], description="Answers without a verdict, by HTTP status."
    )
    meter.create_observable_gauge("ctd.connections.open", [_open], description="Open connections.")
    meter.create_observable_counter(
        "ctd.connections.closed", [_closed], description="Connections that the service closed, by reason."
    )
    meter.create_observable_counter("ctd.reloads", [_reloads], description="Reloads that took effect.")


def _ready(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(int(service.is_ready)) for service in _services()]


def _running(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(service.running) for service in _services()]


def _refused(_: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(count, {"status": str(status)})
        for service in _services()
        for status, count in (dict.fromkeys(_STATUSES, 0) | service.refused).items()
    ]


def _open(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(service.connections.open) for service in _services()]


def _closed(_: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(count, {"reason": str(reason)})
        for service in _services()
        for reason, count in list(service.connections.closed.items())
    ]


def _reloads(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(service.reloads) for service in _services()]
