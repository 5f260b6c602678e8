"""No text, key or name of a user in anything that the guard says."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretBytes

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Mode, OnFailure
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, health_of
from ctd_guardrail.experts.bounded.breaker import CircuitBreaker
from ctd_guardrail.experts.bounded.buckets import MemoryStore
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.runtime.runtime import Runtime
from tests.support.delegating import delegating, openai_expert
from tests.support.faulty_expert import FAULTS, hang, running
from tests.support.internals import shorten_pauses

CONFIG = {"policy": "p", "expert": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"}}
BOUNDS = Bounds(alpha=0.2, delta=0.1, mode=Mode.ENFORCE, on_failure=OnFailure.BLOCK)
FACTS = Facts(guard="g", policy="p", alpha=0.2, delta=0.1, threshold=0.0, expected_rate=0.1)


async def test_no_canary_is_found_in_logs_spans_metrics_audit_decisions_counts_and_errors(
    tmp_path: Path,
    trials: Callable[..., int],
    record: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "canary-key")
    shorten_pauses(monkeypatch)
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("ctd_guardrail.observability.tracing._TRACER", tracing.get_tracer("test"))
    audit_log = AuditLog(
        tmp_path / "audit.jsonl", key=SecretBytes(b"canary-secret-key"), sample=1.0, scores=True, labels=FACTS.labels
    )
    watch = Watch(FACTS, audit_log=audit_log, meter=MeterProvider([reader]).get_meter("test"))
    total, said = trials(full=1000, reduced=100), []
    config = CtdConfig.model_validate(CONFIG | {"allow_overrides": ["alpha"]})
    with running(hang) as judge, caplog.at_level(logging.DEBUG):
        guards = []
        for fault in (*FAULTS, "nowhere"):
            url = judge.failing_url(fault) if fault in FAULTS else "http://127.0.0.1:1/v1"
            caps = SpendCaps([Cap("calls", 60, 60.0, 60, per_principal=True)], MemoryStore(), max_principals=10)
            expert = BoundedExpert(
                openai_expert(url, api_key_env="JUDGE_API_KEY").unbounded,
                breaker=CircuitBreaker(failures=20, open_s=0.05, health=health_of),
                caps=caps,
                attempts=2,
                timeout_s=0.02 if fault in {"hang", "slow_drip"} else 30,
            )
            factory: Any = SimpleNamespace(
                config=config,
                bounds=BOUNDS,
                watch=watch,
                paced=None,
                runtime=Runtime.default(),
                build=lambda *parts: delegating(parts[1], emit=parts[2]),
            )
            guards.append(Guard(factory, {None: expert}, folder=tmp_path))

        async def ask(i: int) -> str:
            guard = guards[i % len(guards)]
            messages = [{"role": "user", "content": f"canary-text {i}" if i % 7 else [{"canary-text": i}]}]
            overrides = {"canary-text": i} if i % 11 == 0 else None
            try:
                return repr(await guard.check(messages, overrides, principal=f"canary-name {i % 20}"))
            except Exception as error:  # noqa: BLE001  # it would be said as well
                return repr(error)

        for start in range(0, total, 20):
            said += await asyncio.gather(*(ask(i) for i in range(start, min(start + 20, total))))
        said += [repr(guard.tally.snapshot()) for guard in guards]
        for guard in guards:
            await guard.aclose()
    told = reader.get_metrics_data()
    assert told is not None
    said += [span.to_json() for span in spans.get_finished_spans()]
    said += [told.to_json(), (tmp_path / "audit.jsonl").read_text()]
    assert len(spans.get_finished_spans()) > total
    assert audit_log.written >= total
    lines = [f"{line.name} {line.getMessage()} {line.exc_text or ''} {vars(line)}" for line in caplog.records]
    found = [text for text in (*said, *lines) if "canary-" in text]
    assert not found, found[0]
    assert len({line.name for line in caplog.records}) >= 3
    record("canaries", total, total)
