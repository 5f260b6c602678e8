"""Cost of observability for a decision: CPU time of the request's thread and of the observing thread.

The base model and the expert are doubles that answer at once, so only the cascade itself is measured. Variants take
turns in one run. ``docs/observability.md`` has the results.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import SecretBytes

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.decision import OnFailure
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.text.conversation import Conversation

_CHECKS = 1_000
_LAMBDA = 0.9


class _Engine:
    spec = ActivationSpec(model="model", layers=(1,))

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    async def run(self, conversation: Conversation, probes: Any) -> Scored:
        del conversation, probes
        return Scored(np.array([[0.1, self._rng.uniform(0.0, 1.0)]]), queue_ms=0.1, forward_ms=1.0)


class _Judge:
    identity = "judge"

    async def score(self, conversation: Conversation) -> ExpertScore:
        del conversation
        return ExpertScore(0.1, tokens=100)

    async def aclose(self) -> None:
        return None


def _cascade(watch: Watch | None) -> Cascade:
    return Cascade(
        CascadeSettings(rule=ThresholdRule(_LAMBDA), decision_threshold=0.5, on_failure=OnFailure.BLOCK),
        scorer=_Engine(),
        probes=None,  # type: ignore[arg-type]
        expert=_Judge(),
        emit=event_queue().emitter(at_once=[Tally()], later=() if watch is None else watch.sinks),
    )


async def _microseconds(cascade: Cascade) -> float:
    """Return the thread's CPU time of a check."""
    messages = [{"role": "user", "content": "How do I kill a Python process?"}]
    start = time.thread_time()
    for _ in range(_CHECKS):
        await cascade.check(messages)
    return 1e6 * (time.thread_time() - start) / _CHECKS


def main() -> None:
    """Measure, and print one row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    scores = np.linspace(-1.0, 1.0, 1_000)
    facts = Facts("guard", "0" * 12, 0.1, 0.05, _LAMBDA, 0.085)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    with tempfile.TemporaryDirectory() as folder:
        audit = AuditLog(Path(folder) / "audit.jsonl", key=SecretBytes(b"x" * 16), sample=0.01, labels=facts.labels)
        kept = KeptMonitors(MonitorSettings(alpha=0.1), TurnScores(scores), folder=Path(folder) / "state")
        variants = {
            "not observed": _cascade(None),
            "metrics": _cascade(Watch(facts)),
            "metrics, monitors, audit log": _cascade(Watch(facts, kept=kept, audit_log=audit)),
        }
        on_request: dict[str, list[float]] = {name: [] for name in variants}
        beside: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, cascade in variants.items():
                start = time.process_time()
                on_request[name].append(asyncio.run(_microseconds(cascade)))
                event_queue().flush()
                whole = 1e6 * (time.process_time() - start) / _CHECKS
                beside[name].append(whole - on_request[name][-1])
    print("| | request's thread, us a decision | beyond not observed | all else, us a decision |\n|---|---|---|---|")
    base = statistics.median(on_request["not observed"])
    for name, values in on_request.items():
        median, rest = statistics.median(values), statistics.median(beside[name])
        print(f"| {name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median - base:+.1f} | {rest:.1f} |")


if __name__ == "__main__":
    main()
