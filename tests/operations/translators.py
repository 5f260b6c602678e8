"""Under which names and labels Prometheus knows OpenTelemetry metrics, by each of the three ways that they take there.

The exporter of Python is asked itself. The two written in Go are not at hand: their rule is stated here as far as this
package's instruments use it, and refuses what lies beyond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Kind = Literal["counter", "gauge", "histogram"]
Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and sorted labels."""
Series = dict[Key, float]

_UNITS: Final = {"s": "seconds", "1": "", "": ""}


class Metric(NamedTuple):
    """One metric as the SDK exports it."""

    name: str
    unit: str
    kind: Kind
    points: list[Any]


def exported(reader: InMemoryMetricReader) -> Iterator[Metric]:
    """Return what an SDK exports by OTLP."""
    data = reader.get_metrics_data()
    assert data is not None
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield Metric(metric.name, metric.unit or "", _kind(metric.data), list(metric.data.data_points))


def _kind(data: Any) -> Kind:
    if isinstance(data, Histogram):
        return "histogram"
    if isinstance(data, Sum) and data.is_monotonic:
        return "counter"
    assert isinstance(data, Gauge)
    return "gauge"


def collector_name(name: str, unit: str, kind: Kind) -> str:
    """Return the name that the OpenTelemetry Collector's exporters for Prometheus give, with suffixes (the default)."""
    return _name(name, unit, kind, separators=r"[^a-zA-Z0-9]+")


def prometheus_name(name: str, unit: str, kind: Kind) -> str:
    """Return the name that Prometheus' own OTLP receiver gives, with escaping and suffixes (the default)."""
    return _name(name, unit, kind, separators=r"[^a-zA-Z0-9:]+")


def _name(name: str, unit: str, kind: Kind, *, separators: str) -> str:
    tokens = [token for token in re.split(separators, name) if token]
    if "{" not in unit and "}" not in unit:  # an annotation is no unit
        word = _UNITS[unit]
        if word and word not in tokens:
            tokens.append(word)
    for suffix, is_due in (("total", kind == "counter"), ("ratio", kind == "gauge" and unit == "1")):
        if is_due:
            tokens = [*(token for token in tokens if token != suffix), suffix]
    return "_".join(tokens)


def by_otlp(reader: InMemoryMetricReader, name_of: Any) -> Series:
    """Return the series into which a translator turns what is exported by OTLP."""
    series: Series = {}

    def put(name: str, value: float, point: Any, **labels: str) -> None:
        series[name, tuple(sorted({**point.attributes, **labels}.items()))] = value

    for metric in exported(reader):
        name = name_of(metric.name, metric.unit, metric.kind)
        for point in metric.points:
            if metric.kind != "histogram":
                put(name, point.value, point)
                continue
            count = 0
            for bound, in_bucket in zip((*point.explicit_bounds, "+Inf"), point.bucket_counts, strict=True):
                count += in_bucket
                put(f"{name}_bucket", count, point, le=str(bound))
            put(f"{name}_sum", point.sum, point)
            put(f"{name}_count", point.count, point)
    return series


def by_python(registry: CollectorRegistry) -> Series:
    """Return the series that the exporter for Python exposes."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if sample.name != "target_info"  # it is about the process
    }
