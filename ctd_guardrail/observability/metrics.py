"""OpenTelemetry metrics. Without an SDK in the process they cost and do nothing.

The user's own SDK and exporter are picked up, whenever they are set. Attributes are words of closed lists and the
policy's hash: no text, no score, nothing that a user wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from opentelemetry import metrics

from ctd_guardrail.decision import Decision, FailurePolicy, Mode, Reason, Route, Verdict
from ctd_guardrail.observability.sink import Observation
from ctd_guardrail.observability.totals import Totals

__all__ = ["DOORS", "METER", "Metrics", "default_meter"]

METER: Final = "ctd_guardrail"

DOORS: Final = ("llmrails", "iorails", "sidecar", "other")
"""Where calls of the main LLM are seen; any other word is counted as ``other``."""

_GUARD: Final = ("guard", "policy")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Instruments(NamedTuple):
    unscreened: Totals
    decisions: metrics.Counter
    bypasses: metrics.Counter
    recalled: metrics.Counter
    attempts: metrics.Counter
    tokens: metrics.Counter
    queue: metrics.Histogram
    forward: metrics.Histogram
    expert: metrics.Histogram
    check: metrics.Histogram


@cache
def _instruments(meter: metrics.Meter) -> _Instruments:
    def seconds(name: str, description: str) -> metrics.Histogram:
        return meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=_SECONDS
        )

    def totals(name: str, description: str, *attributes: str) -> Totals:
        counted = Totals(*_GUARD, *attributes)
        meter.create_observable_counter(name, [counted.observe], description=description)
        return counted

    return _Instruments(
        unscreened=totals(
            "ctd.unscreened_calls", "Calls of the main LLM for which the guard had given no verdict.", "door"
        ),
        decisions=meter.create_counter("ctd.decisions", description="Decisions by verdict, route, reason and mode."),
        bypasses=meter.create_counter(
            "ctd.bypasses",
            description="Failures of the guard in which a failure policy other than block took its place.",
        ),
        recalled=meter.create_counter("ctd.recalled", description="Turns that had been judged before."),
        attempts=meter.create_counter("ctd.expert.attempts", description="Calls of the expert, answered or not."),
        tokens=meter.create_counter("ctd.expert.tokens", description="Tokens that the expert billed."),
        queue=seconds("ctd.queue.duration", "Wait for the device of the base model."),
        forward=seconds("ctd.forward.duration", "The batch on the device."),
        expert=seconds("ctd.expert.duration", "The expert's answer, where it was asked."),
        check=seconds("ctd.check.duration", "The whole decision."),
    )


class Metrics:
    """Counts and times the decisions of guards that share a configuration.

    Args:
        labels: What tells them from others: ``guard`` and ``policy``.
        meter: Where instruments are made; None: in the process's meter provider.
    """

    def __init__(self, labels: Mapping[str, str], *, meter: metrics.Meter | None = None) -> None:
        self._instruments = _instruments(default_meter() if meter is None else meter)
        self._labels = dict(labels)
        self._guard = tuple(labels[name] for name in _GUARD)
        self._instruments.unscreened.expect((*self._guard, door) for door in DOORS)
        self._routes = {route: {**labels, "route": route.value} for route in Route}
        self._attributes: dict[tuple[Verdict, Route, Reason, Mode], dict[str, str]] = {}
        self._counts: Counter[tuple[Verdict, Route, Reason, Mode]] = Counter()
        self._bypasses: Counter[tuple[Reason, FailurePolicy | None, Verdict]] = Counter()

    def decided(self, seen: Observation) -> None:
        """Count and time a decision."""
        decision = seen.decision
        self._counts[decision.verdict, decision.route, decision.reason, decision.mode] += 1
        if decision.is_bypass:
            self._bypasses[decision.reason, decision.on_failure, decision.verdict] += 1
        self._time(decision)

    def asked(self, attempts: int, tokens: int | None) -> None:
        """Count calls of the expert."""
        self._instruments.attempts.add(attempts, self._labels)
        if tokens is not None:
            self._instruments.tokens.add(tokens, self._labels)

    def recalled(self) -> None:
        """Count a turn that had been judged before."""
        self._instruments.recalled.add(1, self._labels)

    def unscreened(self, door: str) -> None:
        """Count a call of the main LLM without a verdict. On any thread."""
        self._instruments.unscreened.add(1, *self._guard, door if door in DOORS else DOORS[-1])

    def tick(self) -> None:
        """Hand over what was counted: instruments of an SDK take 20 us a call, whatever they add."""
        for key, count in self._counts.items():
            verdict, route, reason, mode = key
            attributes = self._attributes.get(key)
            if attributes is None:
                words = {"verdict": verdict, "route": route, "reason": reason, "mode": mode}
                attributes = self._attributes[key] = {
                    **self._labels,
                    **{name: str(each) for name, each in words.items()},
                }
            self._instruments.decisions.add(count, attributes)
        self._counts.clear()
        for (reason, policy, verdict), count in self._bypasses.items():
            attributes = {"reason": str(reason), "on_failure": str(policy), "verdict": str(verdict)}
            self._instruments.bypasses.add(count, {**self._labels, **attributes})
        self._bypasses.clear()

    def _time(self, decision: Decision) -> None:
        timings, instruments = decision.timings, self._instruments
        instruments.check.record(timings.total_ms / 1000, self._routes[decision.route])
        if decision.p is not None:
            instruments.queue.record(timings.queue_ms / 1000, self._labels)
            instruments.forward.record(timings.forward_ms / 1000, self._labels)
        if decision.route is Route.EXPERT:
            instruments.expert.record(timings.expert_ms / 1000, self._labels)


@cache
def default_meter() -> metrics.Meter:
    """Return the meter of the process's meter provider, which may be set later."""
    return metrics.get_meter(METER)
