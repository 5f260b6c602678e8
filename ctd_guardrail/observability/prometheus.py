"""OpenTelemetry metrics in the text format of Prometheus. Needs the extra ``prometheus``."""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["CONTENT_TYPE", "Exposition"]

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Exposition:
    """The metrics of this process, collected at each scrape.

    It becomes the meter provider of the process, and exposes all metrics that use OpenTelemetry here.

    Raises:
        ConfigError: The process has a meter provider already.
    """

    def __init__(self) -> None:
        if isinstance(metrics.get_meter_provider(), MeterProvider):
            raise ConfigError(
                "this process sends its metrics elsewhere already",
                key="--metrics",
                hint="Leave it out: the metrics are among those that are sent",
            )
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        # No resource: a scrape has its own address, and a command line may hold secrets.
        metrics.set_meter_provider(MeterProvider([reader], resource=Resource.get_empty()))

    def text(self) -> bytes:
        """Return the exposition, with all events so far."""
        for runtime in Runtime.all():
            event_queue(runtime).flush()
        return generate_latest(self._registry)
