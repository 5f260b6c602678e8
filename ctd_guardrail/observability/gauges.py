"""OpenTelemetry gauges, computed when an exporter reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter

from ctd_guardrail.observability.metrics import default_meter
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.observability.watch import Watch, watches
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared_memory import SharedMemory, shared_memories

__all__ = ["register_gauges"]

Values = Iterator[metrics.Observation]


@cache
def register_gauges(meter: Meter | None = None) -> None:
    """Show all watches of this process; once for each meter.

    Args:
        meter: Where gauges are made; None: in the process's meter provider.
    """
    meter = default_meter() if meter is None else meter
    for name, unit, description, read in _GAUGES:
        meter.create_observable_gauge(name, [partial(_observe, read)], unit=unit, description=description)
    for name, description, read in _COUNTERS:
        meter.create_observable_counter(name, [partial(_observe, read)], description=description)
    meter.create_observable_counter(
        "ctd.observations.dropped",
        [lambda _: [metrics.Observation(sum(event_queue(runtime).dropped for runtime in Runtime.all()))]],
        description="Events that did not reach monitors, metrics and audit log.",
    )
    meter.create_observable_counter(
        "ctd.memory.outages",
        [lambda _: [metrics.Observation(sum(memory.outages for memory in _memories()))]],
        description="Questions to the shared memory that its server did not answer in time.",
    )
    meter.create_observable_counter(
        "ctd.memory.forgeries",
        [lambda _: [metrics.Observation(sum(memory.forgeries for memory in _memories()))]],
        description="Entries of the shared memory that were not written with its key.",
    )


def _memories() -> Iterator[SharedMemory]:
    return (memory for runtime in Runtime.all() for memory in shared_memories(runtime))


def _observe(read: Callable[[Watch], Values], _: CallbackOptions) -> Iterable[metrics.Observation]:
    return [value for watch in watches() for value in read(watch)]


def _value(value: float, watch: Watch, **labels: str) -> metrics.Observation:
    return metrics.Observation(value, {**watch.facts.labels, **labels})


def _alpha(watch: Watch) -> Values:
    yield _value(watch.facts.alpha, watch)


def _lambda(watch: Watch) -> Values:
    yield _value(watch.facts.threshold, watch)


def _paced(watch: Watch) -> Values:
    if watch.paced is not None:
        yield _value(watch.paced.threshold, watch)


def _pace_share(watch: Watch) -> Values:
    if watch.paced is not None:
        yield _value(watch.paced.pace.share, watch)


def _load(watch: Watch) -> Values:
    yield _value(watch.load_s, watch)


def _expected_rate(watch: Watch) -> Values:
    yield _value(watch.facts.expected_rate, watch)


def _rate(watch: Watch) -> Values:
    rates = watch.rates
    if rates.requests:
        yield _value(rates.per_request, watch, per="request")
    if rates.turns:
        yield _value(rates.per_turn, watch, per="turn")
    if rates.conversations:
        yield _value(rates.per_conversation, watch, per="conversation")


def _rate_bound(watch: Watch) -> Values:
    low, high = watch.band()
    per = "conversation" if watch.facts.unit is BudgetUnit.CONVERSATION else "request"
    yield _value(low, watch, bound="low", per=per)
    if math.isfinite(high):
        yield _value(high, watch, bound="high", per=per)


def _rate_limit(watch: Watch) -> Values:
    if watch.kept is not None:
        limit = watch.kept.monitors.settings.rate_limit
        yield _value(limit.rate, watch, kind=limit.kind)


def _requests(watch: Watch) -> Values:
    yield _value(watch.rates.requests, watch)


def _left_out(watch: Watch) -> Values:
    yield _value(watch.left_out, watch)


def _alarm(watch: Watch) -> Values:
    for name, raised_at in watch.alarms.items():
        yield _value(int(raised_at is not None), watch, alarm=name)


def _evidence(watch: Watch) -> Values:
    if watch.kept is not None:
        for name, evidence in watch.kept.monitors.evidence().items():
            yield _value(evidence, watch, alarm=name)


def _missed(watch: Watch) -> Values:
    audit = None if watch.kept is None else watch.kept.monitors.audit
    if audit is not None and audit.inputs:
        low, high = audit.interval()
        for bound, value in (("low", low), ("estimate", audit.estimate), ("high", high)):
            yield _value(value, watch, bound=bound)


def _audits(watch: Watch) -> Values:
    if watch.kept is not None and watch.kept.monitors.audit is not None:
        yield _value(watch.kept.monitors.audit.audits, watch)


def _scores_kept(watch: Watch) -> Values:
    if watch.kept is not None:
        yield _value(len(watch.kept.monitors.recent), watch)


def _written(watch: Watch) -> Values:
    if watch.audit_log is not None:
        yield _value(watch.audit_log.written, watch)


def _lost(watch: Watch) -> Values:
    if watch.audit_log is not None:
        yield _value(watch.audit_log.lost, watch)


# Units are annotations in braces: every translator to Prometheus drops them. Some append `_ratio` where a gauge has the
# unit 1, and the dashboard would have to know which one is in use.
_GAUGES = (
    ("ctd.alpha", "{share}", "The budget: largest share of the inputs that the expert may see.", _alpha),
    ("ctd.lambda", "{score}", "The threshold on the delegation value.", _lambda),
    ("ctd.pace.lambda", "{score}", "The threshold that the pace runs now, at least ctd.lambda.", _paced),
    ("ctd.pace.share", "{share}", "Share of the certified calls that the pace leaves to the rule.", _pace_share),
    ("ctd.load.duration", "s", "Time that loading the guard took.", _load),
    ("ctd.rate.expected", "{call}", "Calls per unit of the budget that calibration expects.", _expected_rate),
    ("ctd.rate.realised", "{call}", "Calls of the expert per request, per judged turn and per conversation.", _rate),
    ("ctd.rate.bound", "{call}", "Confidence band around the rate that alpha limits, valid at all times.", _rate_bound),
    ("ctd.rate.limit", "{call}", "The rate that the rate alarm tests against.", _rate_limit),
    ("ctd.rate.requests", "{request}", "Number of requests that the rate is of.", _requests),
    ("ctd.rate.left_out", "{request}", "Requests of unknown conversations, which no alarm reads.", _left_out),
    ("ctd.alarm.raised", "{alarm}", "1 where an alarm is raised.", _alarm),
    ("ctd.alarm.evidence", "{evidence}", "Evidence against no change; an alarm is raised at 1 / delta.", _evidence),
    (
        "ctd.audit.missed",
        "{share}",
        "Share of the inputs that passed and that the expert calls unsafe.",
        _missed,
    ),
    ("ctd.audit.inputs", "{input}", "Number of inputs that were audited.", _audits),
    ("ctd.scores.kept", "{score}", "Number of recent scores at hand for a recalibration.", _scores_kept),
)
_COUNTERS = (
    ("ctd.audit_log.lines", "Lines written to the audit log.", _written),
    ("ctd.audit_log.lost", "Lines that could not be written to the audit log.", _lost),
)
