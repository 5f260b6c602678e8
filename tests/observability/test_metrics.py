from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Timings, Verdict
from ctd_guardrail.observability.events import Decided, ExpertCalled, Origin, Recalled, Served, UnscreenedCall
from ctd_guardrail.observability.metrics import DOORS, Metrics

LABELS = {"guard": "config", "policy": "0123456789ab"}


def decided(decision: Decision, **fields: Any) -> Decided:
    return Decided(decision, 0.0, **fields)


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def metrics(reader: InMemoryMetricReader) -> Metrics:
    return Metrics(LABELS, meter=MeterProvider([reader]).get_meter("test"))


def test_decisions_are_counted_by_verdict_route_reason_and_mode(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    allowed = Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, p=0.1, d=0.0)
    shadowed = Decision(Verdict.BLOCK, Route.EXPERT, Reason.EXPERT_UNSAFE, p=0.1, d=0.9, mode=Mode.SHADOW)
    for decision in (allowed, shadowed, allowed):
        metrics(decided(decision))
    found = points(reader)["ctd.decisions"]
    counted = {tuple(sorted(point.attributes.items())): point.value for point in found if point.value}
    words = ("mode", "reason", "route", "verdict")
    assert {tuple(dict(key)[word] for word in words): value for key, value in counted.items()} == {
        ("enforce", "probe_safe", "probe", "allow"): 2,
        ("shadow", "expert_unsafe", "expert", "block"): 1,
    }
    assert all(LABELS.items() <= dict(key).items() for key in counted)


def test_a_failure_whose_policy_is_another_than_block_is_a_bypass(
    metrics: Metrics, reader: InMemoryMetricReader
) -> None:
    for verdict, policy in (
        (Verdict.ALLOW, OnFailure.ALLOW),
        (Verdict.BLOCK, OnFailure.BLOCK),
        (Verdict.BLOCK, OnFailure.PROBE),
        (Verdict.ALLOW, OnFailure.ALLOW),
    ):
        metrics(decided(Decision(verdict, Route.EXPERT, Reason.EXPERT_TIMEOUT, on_failure=policy)))
    counted = {
        tuple(point.attributes[name] for name in ("reason", "on_failure", "verdict")): point.value
        for point in points(reader)["ctd.bypasses"]
        if point.value
    }
    assert counted == {("expert_timeout", "allow", "allow"): 2, ("expert_timeout", "probe", "block"): 1}


def test_times_are_seconds_of_those_who_took_part(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    timings = Timings(probe_ms=30.0, expert_ms=500.0, total_ms=530.0, queue_ms=10.0, forward_ms=20.0)
    asked = Decision(Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_SAFE, p=0.1, d=0.9, timings=timings)
    unread = Decision(Verdict.BLOCK, Route.PROBE, Reason.OVERLONG, timings=Timings(total_ms=1.0))
    metrics(decided(asked))
    metrics(decided(unread))
    found = points(reader)
    sums = {
        name: sum(point.sum for point in found[f"ctd.{name}.duration"])
        for name in ("queue", "forward", "expert", "check")
    }
    assert sums == pytest.approx({"queue": 0.01, "forward": 0.02, "expert": 0.5, "check": 0.531})
    assert [point.count for point in found["ctd.queue.duration"]] == [1]
    assert {point.attributes["route"]: point.count for point in found["ctd.check.duration"]} == {
        "expert": 1,
        "probe": 1,
    }


def test_calls_of_the_main_model_without_a_verdict_are_counted_from_zero(
    metrics: Metrics, reader: InMemoryMetricReader
) -> None:
    def totals() -> dict[str, int]:
        found = points(reader)["ctd.unscreened_calls"]
        assert all(LABELS.items() <= dict(point.attributes).items() for point in found)
        return {point.attributes["door"]: point.value for point in found}

    assert totals() == dict.fromkeys(DOORS, 0)
    metrics(UnscreenedCall("unknown"))
    metrics(UnscreenedCall("a word of some caller"))
    assert totals() == {**dict.fromkeys(DOORS, 0), "unknown": 1, "other": 1}


def test_calls_tokens_and_recalled_turns_are_counted(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    metrics(ExpertCalled(2, 70))
    metrics(Recalled())
    # A self-test is no traffic, but its calls are paid.
    metrics(ExpertCalled(1, 0, Origin.SELF_TEST))
    metrics(Recalled(Origin.SELF_TEST))
    for calls in (1, 0, 2):
        metrics(Served("name", "digest", (0.5,), calls, is_placed=True, at=0.0))
    metrics(Served("name", "digest", (0.5,), 1, is_placed=True, at=0.0, origin=Origin.SELF_TEST))
    metrics(decided(Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE), origin=Origin.SELF_TEST))
    found = points(reader)
    names = ("ctd.expert.attempts", "ctd.expert.tokens", "ctd.recalled", "ctd.requests", "ctd.requests.calls")
    assert [found[name][0].value for name in names] == [3, 70, 1, 3, 3]
    assert not any(point.value for point in found["ctd.decisions"])
