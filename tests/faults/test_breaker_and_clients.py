"""The breaker when it may be tried again, and clients that leave."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail.decision import Reason
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, health_of
from ctd_guardrail.experts.bounded.breaker import BreakerState, CircuitBreaker
from ctd_guardrail.sidecar.settings import Limits, ServeSettings
from tests.support.delegating import delegating, openai_expert
from tests.support.faulty_expert import Judge, answer, hang, running
from tests.support.internals import batcher_of, loaded_guard, scorer_of
from tests.support.sidecar import Sidecar
from tests.support.waiting import eventually

UNSURE = [{"role": "user", "content": "is this safe?"}]


@pytest.fixture
def judge_that_fails() -> Iterator[Judge]:
    with running(answer({}, status=503)) as judge:
        yield judge


async def test_at_half_open_a_hundred_callers_make_one_call(
    judge_that_fails: Judge, record: Callable[..., None]
) -> None:
    breaker = CircuitBreaker(failures=2, open_s=0.05, health=health_of)
    expert = BoundedExpert(openai_expert(judge_that_fails.base_url).unbounded, breaker=breaker, timeout_s=60)
    cascade = delegating(expert)
    for _ in range(2):
        assert (await cascade.check(UNSURE)).reason is Reason.EXPERT_UNAVAILABLE
    assert (await cascade.check(UNSURE)).reason is Reason.BREAKER_OPEN
    judge_that_fails.behaviour = hang
    before = len(judge_that_fails.requests)
    await asyncio.sleep(0.06)
    stampede = [asyncio.create_task(cascade.check(UNSURE)) for _ in range(100)]
    refused = 0
    for done in asyncio.as_completed(stampede):
        refused += (await done).reason is Reason.BREAKER_OPEN
        if refused == 99:
            break
    await eventually(lambda: len(judge_that_fails.requests) - before >= 1)
    for task in stampede:
        task.cancel()
    await asyncio.gather(*stampede, return_exceptions=True)
    calls = len(judge_that_fails.requests) - before
    assert breaker.state is BreakerState.HALF_OPEN  # clients that leave are no evidence
    await cascade.aclose()
    record("half_open", 100 * (calls == 1), 100)


@pytest.fixture
def sidecar(make_rail_folder: Callable[..., Path]) -> Iterator[tuple[Sidecar, Judge]]:
    with running(hang) as judge:
        expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 500}
        folder = make_rail_folder(expert=expert, deadline_s=600, breaker=1)
        limits = Limits(concurrency=100)
        sidecar = Sidecar(folder, ServeSettings(limits=limits)).wait_until_ready()
        yield sidecar, judge
        sidecar.stop()


async def leave(port: int, judge: Judge, already: int) -> None:
    """Ask, wait until the expert has been asked, and go."""
    body = json.dumps({"text": "an odd question"}).encode()
    head = (
        f"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    await writer.drain()
    await eventually(lambda: len(judge.requests) >= already)
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""


async def test_clients_that_leave_open_no_breaker_and_leave_nothing_behind(
    sidecar: tuple[Sidecar, Judge], trials: Callable[..., int], record: Callable[..., None]
) -> None:
    server, judge = sidecar
    port = int(server.url.rsplit(":", 1)[1])
    total = trials(full=1000, reduced=50)
    tasks = len(server.call(_tasks()))
    for start in range(0, total, 50):
        await asyncio.gather(*(leave(port, judge, start + 50) for _ in range(50)))
        await eventually(lambda start=start: judge.disconnections >= start + 50)  # type: ignore[misc]
    await eventually(lambda: not server.service.stats()["running"] and len(server.call(_tasks())) <= tasks)
    stats: dict[str, Any] = server.service.stats()
    assert stats["experts"] == {"default": {"enabled": True, "breaker": "closed", "waiting": 0}}
    assert stats["expert_attempts"] == len(judge.requests) == total
    assert stats["failures"] == 0
    assert not batcher_of(scorer_of(loaded_guard(server.service)))._queue
    record("client_disconnect", judge.disconnections, total)


async def _tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
