"""OpenTelemetry metrics. Without an SDK in the process they do nothing.

The SDK and exporter of the user are used, whenever they are set up. Attributes are words of closed lists and the
policy's hash: no text, no score, no word of a user.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final, NamedTuple

from opentelemetry import metrics

from ctd_guardrail.decision import ALWAYS_BLOCKED, Decision, Mode, OnFailure, Reason, Route, Verdict
from ctd_guardrail.observability.events import Decided, Event, ExpertCalled, Origin, Recalled, Served, UnscreenedCall
from ctd_guardrail.observability.totals import Totals

__all__ = ["DOORS", "METER", "Metrics", "default_meter"]

METER: Final = "ctd_guardrail"

DOORS: Final = ("unknown", "client_options", "other")
"""Causes of a call of the main LLM without a verdict. ``unknown``: the call came through no door that the gate knows.
``client_options``: the operator allows clients to switch the rail off. All other words count as ``other``."""

_GUARD: Final = ("guard", "policy")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Instruments(NamedTuple):
    decisions: Totals
    requests: Totals
    calls: Totals
    failures: Totals
    bypasses: Totals
    unscreened: Totals
    recalled: Totals
    attempts: Totals
    tokens: Totals
    queue: metrics.Histogram
    forward: metrics.Histogram
    expert: metrics.Histogram
    check: metrics.Histogram


@cache
def _instruments(meter: metrics.Meter) -> _Instruments:
    def totals(name: str, description: str, *attributes: str) -> Totals:
        counted = Totals(*_GUARD, *attributes)
        meter.create_observable_counter(name, [counted.observe], description=description)
        return counted

    def seconds(name: str, description: str) -> metrics.Histogram:
        return meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=_SECONDS
        )

    return _Instruments(
        decisions=totals(
            "ctd.decisions", "Decisions by verdict, route, reason and mode.", "verdict", "route", "reason", "mode"
        ),
        failures=totals("ctd.failures", "Decisions in which the guard could not do its work, by reason.", "reason"),
        bypasses=totals(
            "ctd.bypasses",
            "Failures of the guard that another setting of on_failure than block decided.",
            "reason",
            "on_failure",
            "verdict",
        ),
        unscreened=totals("ctd.unscreened_calls", "Calls of the main LLM without a verdict of the guard.", "door"),
        requests=totals("ctd.requests", "Requests, each with one new turn of a conversation."),
        calls=totals("ctd.requests.calls", "Units of these requests that went to the expert."),
        recalled=totals("ctd.recalled", "Turns that had been judged before."),
        attempts=totals("ctd.expert.attempts", "Calls of the expert, answered or not."),
        tokens=totals("ctd.expert.tokens", "Tokens that the expert billed."),
        queue=seconds("ctd.queue.duration", "Wait for the device of the base model."),
        forward=seconds("ctd.forward.duration", "The batch on the device."),
        expert=seconds("ctd.expert.duration", "The expert's answer, if it was asked."),
        check=seconds("ctd.check.duration", "The whole decision."),
    )


class Metrics:
    """Counts and times the decisions of guards that share a configuration.

    Args:
        labels: The attributes of these guards: ``guard`` and ``policy``.
        meter: Where instruments are made; None: in the process's meter provider.
    """

    def __init__(self, labels: Mapping[str, str], *, meter: metrics.Meter | None = None) -> None:
        self._instruments = _instruments(default_meter() if meter is None else meter)
        self._labels = dict(labels)
        self._routes = {route: {**labels, "route": route.value} for route in Route}
        self._guard = guard = tuple(labels[name] for name in _GUARD)
        counters = self._instruments
        counters.decisions.expect(self, ((*guard, *words) for words in _judgements()))
        counters.failures.expect(self, ((*guard, reason.value) for reason in Reason if reason.is_failure))
        counters.bypasses.expect(self, ((*guard, *words) for words in _bypasses()))
        counters.unscreened.expect(self, ((*guard, door) for door in DOORS))
        for counter in (counters.requests, counters.calls, counters.recalled, counters.attempts, counters.tokens):
            counter.expect(self, [guard])

    def __call__(self, event: Event) -> None:
        """Count and time an event. The inputs of a self-test are no traffic, but their calls of the expert are paid."""
        match event:
            case Decided() if event.origin is not Origin.SELF_TEST:
                self._count(event.decision)
                self._time(event.decision)
            case Served() if event.origin is not Origin.SELF_TEST:
                self._instruments.requests.add(1, *self._guard)
                self._instruments.calls.add(event.calls, *self._guard)
            case Recalled() if event.origin is not Origin.SELF_TEST:
                self._instruments.recalled.add(1, *self._guard)
            case ExpertCalled():
                self._instruments.attempts.add(event.attempts, *self._guard)
                self._instruments.tokens.add(event.tokens, *self._guard)
            case UnscreenedCall(door):
                self._instruments.unscreened.add(1, *self._guard, door if door in DOORS else DOORS[-1])

    def _count(self, decision: Decision) -> None:
        counters = self._instruments
        verdict, route, reason, mode = decision.verdict, decision.route, decision.reason, decision.mode
        counters.decisions.add(1, *self._guard, verdict.value, route.value, reason.value, mode.value)
        if reason.is_failure:
            counters.failures.add(1, *self._guard, reason.value)
        if decision.is_bypass and decision.on_failure is not None:
            counters.bypasses.add(1, *self._guard, reason.value, decision.on_failure.value, verdict.value)

    def _time(self, decision: Decision) -> None:
        timings, instruments = decision.timings, self._instruments
        instruments.check.record(timings.total_ms / 1000, self._routes[decision.route])
        if decision.p is not None:
            instruments.queue.record(timings.queue_ms / 1000, self._labels)
            instruments.forward.record(timings.forward_ms / 1000, self._labels)
        if decision.route is Route.EXPERT:
            instruments.expert.record(timings.expert_ms / 1000, self._labels)


def _judgements() -> Iterator[tuple[str, str, str, str]]:
    """Return verdict, route, reason and mode of each judgement."""
    for mode in Mode:
        yield Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, mode
        yield Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE, mode
        yield Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_SAFE, mode
        yield Verdict.BLOCK, Route.EXPERT, Reason.EXPERT_UNSAFE, mode
        yield Verdict.ALLOW, Route.PROBE, Reason.BLANK, mode
        for verdict, route in itertools.product(Verdict, Route):
            yield verdict, route, Reason.ABSTAINED, mode


def _bypasses() -> Iterator[tuple[str, str, str]]:
    """Return reason, setting of ``on_failure`` and verdict of each bypass."""
    for reason in (each for each in Reason if each.is_failure and each not in ALWAYS_BLOCKED):
        yield reason, OnFailure.ALLOW, Verdict.ALLOW
        yield reason, OnFailure.PROBE, Verdict.ALLOW
        yield reason, OnFailure.PROBE, Verdict.BLOCK


@cache
def default_meter() -> metrics.Meter:
    """Return the meter of the process's meter provider, which may be set later."""
    return metrics.get_meter(METER)
