import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from ctd_guardrail.errors import ExpertOverloadedError
from ctd_guardrail.experts.bounded.bulkhead import Bulkhead


async def test_slots_are_given_in_the_order_of_asking_and_no_more_than_there_are() -> None:
    bulkhead = Bulkhead(2, 10)
    order: list[int] = []
    busy = peak = 0

    async def work(number: int) -> None:
        nonlocal busy, peak
        await bulkhead.acquire()
        order.append(number)
        busy += 1
        peak = max(peak, busy)
        await asyncio.sleep(0.001)
        busy -= 1
        bulkhead.release()

    await asyncio.gather(*(work(number) for number in range(12)))
    assert order == list(range(12))
    assert peak == 2
    assert bulkhead.waiting == 0


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    bulkhead = Bulkhead(1, 2)
    await bulkhead.acquire()
    waiting = [asyncio.create_task(bulkhead.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ExpertOverloadedError, match="2 inputs are waiting"):
        await bulkhead.acquire()
    for _ in range(3):
        bulkhead.release()
    await asyncio.gather(*waiting)
    await bulkhead.acquire()


async def test_who_is_cancelled_holds_no_slot() -> None:
    rng, bulkhead = random.Random(0), Bulkhead(2, 100)

    async def work() -> None:
        await bulkhead.acquire()
        try:
            await asyncio.sleep(0.001 * rng.random())
        finally:
            bulkhead.release()

    tasks = [asyncio.create_task(work()) for _ in range(100)]
    for task in rng.sample(tasks, 60):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (bulkhead._free, bulkhead.waiting) == (2, 0)


async def test_a_slot_that_came_with_the_cancellation_goes_to_the_next() -> None:
    bulkhead = Bulkhead(1, 2)
    await bulkhead.acquire()
    first, second = (asyncio.create_task(bulkhead.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    bulkhead.release()
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()


def test_it_serves_many_loops_on_many_threads() -> None:
    bulkhead = Bulkhead(3, 1000)

    async def work() -> int:
        await bulkhead.acquire()
        busy = 3 - bulkhead._free
        await asyncio.sleep(0)
        bulkhead.release()
        return busy

    async def many() -> list[int]:
        return await asyncio.gather(*(work() for _ in range(20)))

    with ThreadPoolExecutor(8) as threads:
        seen = [busy for part in threads.map(lambda _: asyncio.run(many()), range(8)) for busy in part]
    assert len(seen) == 160
    assert max(seen) <= 3
    assert (bulkhead._free, bulkhead.waiting) == (3, 0)
