"""All sinks of a guard see the same events in the same order, whatever the threads and event loops do."""

import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import SecretBytes

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.errors import ExpertUnavailableError
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.monitors.kept_monitors import KeptMonitors
from ctd_guardrail.monitors.monitors import MonitorSettings
from ctd_guardrail.observability.audit_log import AuditLog
from ctd_guardrail.observability.events import (
    Arrived,
    Audited,
    Decided,
    Event,
    ExpertCalled,
    Recalled,
    Routed,
    Served,
    UnscreenedCall,
)
from ctd_guardrail.observability.facts import Facts
from ctd_guardrail.observability.monitor_sink import MonitorSink
from ctd_guardrail.observability.queue import EventQueue
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import make_cascade
from tests.support.waiting import eventually, wait_until

KEY = SecretBytes(b"x" * 16)
FACTS = Facts(guard="g", policy="p", alpha=0.5, delta=0.05, threshold=0.0, expected_rate=0.3)


class Asked(NamedTuple):
    """One request: its text decides p, its number d; the expert answers after some turns of the loop, or fails."""

    text: int
    d: float
    turns: int
    is_expert_down: bool
    is_cancelled: bool
    is_screened: bool


REQUESTS = st.builds(
    Asked,
    text=st.integers(0, 5),
    d=st.sampled_from([-0.5, 0.5]),
    turns=st.integers(0, 4),
    is_expert_down=st.booleans(),
    is_cancelled=st.booleans(),
    is_screened=st.booleans(),
)
LOOPS = st.lists(st.lists(st.lists(REQUESTS, max_size=4), min_size=1, max_size=4), min_size=1, max_size=4)


class Parts:
    """Scorer and expert. The text carries the request: the digits of its fields."""

    spec = ActivationSpec(model="model", layers=(1,))
    identity = "judge"

    async def run(self, unit: Conversation, head: Any) -> Scored:
        _, text, d, turns, *_ = unit.messages[0].content.split()
        for _ in range(int(turns)):
            await asyncio.sleep(0)
        return Scored(np.array([[0.9 if int(text) % 2 else 0.1, float(d)]]), queue_ms=0.0, forward_ms=0.0)

    async def score(self, unit: Conversation) -> ExpertScore:
        *_, turns, is_down = unit.messages[0].content.split()
        for _ in range(int(turns)):
            await asyncio.sleep(0)
        if int(is_down):
            raise ExpertUnavailableError("down")
        return ExpertScore(0.8, tokens=7)

    async def aclose(self) -> None:
        return None


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    """Let threads take turns after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def let_others_run(event: Event) -> None:
    """A sink that gives the interpreter to other threads, in the middle of an event."""
    time.sleep(random.uniform(0.0, 0.0002))


def _values(reader: InMemoryMetricReader, name: str) -> Counter[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    metrics: Any = data.resource_metrics[0].scope_metrics[0].metrics
    (metric,) = [metric for metric in metrics if metric.name == name]
    found: Counter[Any] = Counter()
    for point in metric.data.data_points:
        words = [str(point.attributes[key]) for key in ("verdict", "route", "reason") if key in point.attributes]
        found[tuple(words)] += point.value
    return +found


@settings(max_examples=25, deadline=None)
@given(loops=LOOPS)
def test_all_sinks_see_the_same_events_in_the_same_order(loops: list[list[list[Asked]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        queue, tally, reader = EventQueue(every_s=3600), Tally(), InMemoryMetricReader()
        meter = MeterProvider([reader]).get_meter("test")
        log = AuditLog(Path(folder) / "log", key=KEY, sample=1.0, labels=FACTS.labels)
        kept = KeptMonitors(MonitorSettings(alpha=0.5, audit_share=0.25), TurnScores(np.linspace(-1.0, 1.0, 50)))
        watch = Watch(FACTS, kept=kept, audit_log=log, meter=meter)
        at_once: list[Event] = []
        later: list[list[Event]] = [[] for _ in watch.sinks]

        def noted(seen: list[Event], sink: Any) -> Any:
            return lambda event: (seen.append(event), sink(event))

        emit = queue.emitter(
            at_once=[noted(at_once, tally), let_others_run],
            later=[noted(seen, sink) for seen, sink in zip(later, watch.sinks, strict=True)],
        )
        cascade = make_cascade(
            scorer=Parts(), expert=Parts(), audit_share=0.25, judgement_key=f"key of {folder}", emit=emit
        )

        async def ask(requests: list[Asked]) -> None:
            for request in requests:
                if not request.is_screened:
                    emit(UnscreenedCall("unknown"))
                text = f"text {request.text} {request.d} {request.turns} {int(request.is_expert_down)}"
                task = asyncio.create_task(cascade.check([{"role": "user", "content": text}]))
                for _ in range(request.turns + 1):
                    await asyncio.sleep(0)
                if request.is_cancelled:
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        together = threading.Barrier(len(loops))

        async def run(tasks: list[list[Asked]]) -> None:
            together.wait()
            await asyncio.gather(*map(ask, tasks))

        threads = [threading.Thread(target=lambda tasks=tasks: asyncio.run(run(tasks))) for tasks in loops]
        for thread in threads:
            thread.start()

        def flush() -> bool:
            queue.flush()  # as the queue's own thread does, in the middle of it all
            return not any(thread.is_alive() for thread in threads)

        wait_until(flush, every_s=0.0)
        queue.flush()

        assert queue.dropped == 0
        order = [id(event) for event in at_once]  # events of two requests may be equal
        assert all([id(event) for event in seen] == order for seen in later)
        by_kind: dict[type, list[Any]] = {
            kind: [event for event in at_once if isinstance(event, kind)]
            for kind in (Arrived, Decided, Routed, Audited, ExpertCalled, Recalled, Served, UnscreenedCall)
        }
        counts = tally.snapshot()
        decided = Counter(
            (str(e.decision.verdict), str(e.decision.route), str(e.decision.reason)) for e in by_kind[Decided]
        )
        assert Counter({tuple(map(str, key)): value for key, value in counts.decisions.items()}) == decided
        assert _values(reader, "ctd.decisions") == decided
        assert log.written == counts.total == len(by_kind[Decided])
        assert _values(reader, "ctd.expert.attempts").total() == counts.expert_attempts == len(by_kind[ExpertCalled])
        assert _values(reader, "ctd.recalled").total() == counts.recalled == len(by_kind[Recalled])
        assert (
            _values(reader, "ctd.unscreened_calls").total() == counts.unscreened_calls == len(by_kind[UnscreenedCall])
        )
        assert counts.requests == len(by_kind[Served]) == sum(len(requests) for tasks in loops for requests in tasks)
        assert counts.calls == sum(event.calls for event in by_kind[Served])
        assert (watch.rates.requests, watch.rates.calls) == (counts.requests, counts.calls)
        assert len(by_kind[Arrived]) == len(by_kind[Served])
        assert watch.kept is not None
        assert watch.kept.monitors.audit is not None
        assert watch.kept.monitors.audit.audits == len(by_kind[Audited])
        assert len(by_kind[Audited]) == sum(e.is_audited for e in (*by_kind[Routed], *by_kind[Recalled]))


async def test_the_order_does_not_depend_on_the_scores() -> None:
    """Two inputs are routed in the order in which they arrive, although the second one is decided first."""

    class Slow(Parts):
        async def score(self, unit: Conversation) -> ExpertScore:
            await may_answer.wait()
            return ExpertScore(0.1)

    may_answer = asyncio.Event()
    seen: list[Event] = []
    cascade = make_cascade(scorer=Parts(), expert=Slow(), emit=seen.append)
    first = asyncio.create_task(cascade.check([{"role": "user", "content": "text 0 0.5 0 0"}]))
    await eventually(lambda: any(isinstance(event, Routed) for event in seen), every_s=0)
    await cascade.check([{"role": "user", "content": "text 0 -0.5 0 0"}])
    may_answer.set()
    await first
    assert [event.d for event in seen if isinstance(event, Routed)] == [0.5, -0.5]
    assert [type(event) for event in seen if not isinstance(event, Decided | ExpertCalled)] == [
        Arrived,
        Routed,
        Arrived,
        Routed,
        Served,
        Served,
    ]
    # The monitors take them in order of arrival, although the second one has ended first.
    kept = KeptMonitors(MonitorSettings(alpha=0.5), TurnScores(np.linspace(-1.0, 1.0, 50)))
    sink = MonitorSink(kept)
    for event in seen:
        sink(event)
    assert [row.split(",")[0] for row in kept.monitors.recent.csv().splitlines()[1:]] == ["0.5", "-0.5"]
