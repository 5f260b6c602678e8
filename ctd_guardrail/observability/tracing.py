"""OpenTelemetry spans: one for a check, and one within it for each answer of the expert.

Without an SDK a span does nothing and costs a microsecond. Exceptions are not recorded: their messages may quote the
conversation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace
from opentelemetry.trace import Span

from ctd_guardrail.decision import Decision
from ctd_guardrail.observability.metrics import METER

__all__ = ["check_span", "describe", "expert_span"]

_TRACER = trace.get_tracer(METER)


def _current(name: str) -> AbstractContextManager[Span]:
    span = _TRACER.start_span(name)
    if not span.is_recording():
        return nullcontext(span)
    return trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)


def check_span() -> AbstractContextManager[Span]:
    """Return the context of one check."""
    return _current("ctd.check")


def expert_span() -> AbstractContextManager[Span]:
    """Return the context of one answer of the expert; spans of HTTP clients become its children."""
    return _current("ctd.expert")


def describe(span: Span, decision: Decision) -> None:
    """Write the decision and its times into the span of a check. No score, no text."""
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "ctd.verdict": str(decision.verdict),
            "ctd.route": str(decision.route),
            "ctd.reason": str(decision.reason),
            "ctd.mode": str(decision.mode),
            "ctd.queue_ms": decision.timings.queue_ms,
            "ctd.forward_ms": decision.timings.forward_ms,
            "ctd.expert_ms": decision.timings.expert_ms,
        }
    )
    if decision.reason.is_failure:
        span.set_status(trace.StatusCode.ERROR, str(decision.reason))
