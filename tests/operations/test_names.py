"""One set of names for the metrics, whichever way they take to Prometheus."""

import pytest

from ctd_guardrail.decision import Reason
from ctd_guardrail.observability.metrics import DOORS
from tests.operations.station import WAYS, Station
from tests.operations.translators import Kind, collector_name, exported, prometheus_name


@pytest.mark.parametrize("translate", [collector_name, prometheus_name])
@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("a.share", "1", "gauge", "a_share_ratio"),  # so no gauge of this package has the unit 1
        ("a.ratio", "1", "gauge", "a_ratio"),
        ("a.number", "1", "counter", "a_number_total"),
        ("a.number.total", "", "counter", "a_number_total"),
        ("a.share", "{share}", "gauge", "a_share"),
        ("a.share", "", "gauge", "a_share"),
        ("a.duration", "s", "histogram", "a_duration_seconds"),
        ("a.duration", "s", "gauge", "a_duration_seconds"),
        ("a.seconds", "s", "counter", "a_seconds_total"),
        ("a__long..name", "", "gauge", "a_long_name"),
    ],
)
def test_the_rule_of_the_translators_in_go(translate: object, name: str, unit: str, kind: Kind, expected: str) -> None:
    assert callable(translate)
    assert translate(name, unit, kind) == expected


def test_all_ways_lead_to_the_same_series(station: Station) -> None:
    for reason in Reason:
        station.decide(reason, p=0.1)
    ways = station.export()
    assert len(ways["python"]) > 100
    for way in WAYS:
        assert ways[way] == ways["python"], way


def test_counters_exist_at_zero_before_anything_has_happened(station: Station) -> None:
    counters = {metric.name: metric for metric in exported(station.reader) if metric.kind == "counter"}
    of_the_process = {"ctd.observations.dropped"}  # other tests are in it
    assert not any(point.value for name in counters.keys() - of_the_process for point in counters[name].points), (
        "before anything has happened"
    )

    def words(name: str, *attributes: str) -> set[tuple[str, ...]]:
        return {tuple(point.attributes[each] for each in attributes) for point in counters[name].points}

    failures = {reason.value for reason in Reason if reason.is_failure}
    assert words("ctd.failures", "reason") == {(reason,) for reason in failures}
    assert words("ctd.decisions", "reason") == {(reason.value,) for reason in Reason if not reason.is_failure}
    assert words("ctd.unscreened_calls", "door") == {(door,) for door in DOORS}
    no_policy = {"non_text", "overlong", "bad_override", "not_ready"}
    assert words("ctd.bypasses", "reason", "on_failure", "verdict") == {
        (reason, *words)
        for reason in failures - no_policy
        for words in (("allow", "allow"), ("probe", "allow"), ("probe", "block"))
    }
    for name in (
        "ctd.recalled",
        "ctd.requests",
        "ctd.requests.calls",
        "ctd.expert.attempts",
        "ctd.expert.tokens",
        "ctd.audit_log.lost",
        "ctd.audit_log.lines",
        "ctd.observations.dropped",
        "ctd.memory.outages",
        "ctd.memory.forgeries",
        "ctd.requests.refused",
    ):
        assert counters[name].points, name


def test_totals_of_a_guard_that_is_gone_stay_and_its_zeros_go(station: Station) -> None:
    station.bypass()
    del station.metrics
    left = {metric.name: metric.points for metric in exported(station.reader)}
    assert [(point.attributes["reason"], point.value) for point in left["ctd.bypasses"]] == [("expert_timeout", 1)]
    assert "ctd.unscreened_calls" not in left
