"""A guard in service without its models: real instruments, monitors, audit log and sidecar, fed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from pydantic import SecretBytes

from ctd_guardrail.decision import Decision, OnFailure, Reason, Route, Timings, Verdict
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability import service_metrics
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.events import Audited, Decided, Event, Served
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.gauges import register_gauges
from ctd_guardrail.observability.metrics import Metrics
from ctd_guardrail.observability.watch import Watch, shared_watch
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.runtime.shared_memory import SharedMemory
from ctd_guardrail.sidecar.service import Service, Status
from tests.operations.translators import Key, Series, by_otlp, by_python, collector_name, prometheus_name

WAYS = ("python", "collector", "prometheus")
_CALIBRATION = np.linspace(-1.0, 1.0, 200)


class Station:
    """Exports what an operator sees, by all three ways."""

    def __init__(self, folder: Path) -> None:
        facts = Facts(
            guard=folder.name, policy="0123456789ab", alpha=0.2, delta=0.05, threshold=0.5, expected_rate=0.15
        )
        self._registry, self.reader = CollectorRegistry(), InMemoryMetricReader()
        exporter = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        provider = MeterProvider([self.reader, exporter], resource=Resource.get_empty())
        meter = provider.get_meter("ctd_guardrail")
        self.audit_file = folder / "audit" / "audit.jsonl"
        audit = self._audit = AuditLog(
            self.audit_file, key=SecretBytes(b"a secret of the test"), sample=1.0, labels=facts.labels
        )
        settings = MonitorSettings(alpha=0.2, audit_share=0.05)
        self.watch = shared_watch(
            folder, lambda: Watch(facts, kept=KeptMonitors(settings, TurnScores(_CALIBRATION)), audit_log=audit)
        )
        self.metrics = Metrics(facts.labels, meter=meter)
        self.memory: SharedMemory | None = None
        self.service = Service(folder)
        self.service.status = Status.READY
        register_gauges(meter)
        service_metrics.register(meter)

    def decide(self, reason: Reason = Reason.PROBE_SAFE, count: int = 1, **fields: Any) -> None:
        """Have decisions counted."""
        policy = fields.get("on_failure")
        blocks = reason in {Reason.PROBE_UNSAFE, Reason.EXPERT_UNSAFE} or (reason.is_failure and policy != "allow")
        verdict = Verdict.BLOCK if blocks else Verdict.ALLOW
        route = Route.EXPERT if reason.value.startswith("expert") else Route.PROBE
        seen = Decided(Decision(verdict, route, reason, **fields), 0.0)
        for _ in range(count):
            self.metrics(seen)

    def bypass(self) -> None:
        """Let one input pass unchecked."""
        self.decide(Reason.EXPERT_TIMEOUT, on_failure=OnFailure.ALLOW)

    def wait_for_the_device(self) -> None:
        """Have inputs wait for 0.8 seconds."""
        self.decide(count=50, p=0.1, d=0.0, timings=Timings(queue_ms=800.0))

    def note(self) -> None:
        """Have a line written to the audit log."""
        decision = Decision(Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE)
        self._audit(Decided(decision, 0.0))

    def delegate(self) -> None:
        """Have far more delegated than the budget allows, at scores as in calibration."""
        for d in np.random.default_rng(0).permutation(_CALIBRATION):
            self._serve(float(d), calls=1)

    def drift(self) -> None:
        """Have scores that the calibration has not seen, within the budget."""
        for _ in range(100):
            self._serve(1.5, calls=0)

    def miss(self) -> None:
        """Have audits find harm that passed."""
        for _ in range(100):
            self._watch(Audited(is_missed=True))

    def _serve(self, d: float, *, calls: int) -> None:
        self._watch(Served("conversation", "digest", (d,), calls, is_placed=True, at=0.0))

    def _watch(self, event: Event) -> None:
        for sink in self.watch.sinks:
            sink(event)

    def export(self) -> dict[str, Series]:
        """Return what Prometheus would know now, by each way."""
        ways = {
            "python": by_python(self._registry),
            "collector": by_otlp(self.reader, collector_name),
            "prometheus": by_otlp(self.reader, prometheus_name),
        }
        return {
            way: {key: value for key, value in series.items() if self._is_mine(key)} for way, series in ways.items()
        }

    def _is_mine(self, key: Key) -> bool:
        """Return whether a series is not one of other guards that tests have left in this process."""
        return dict(key[1]).get("guard", self.watch.facts.guard) == self.watch.facts.guard
