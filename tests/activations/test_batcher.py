import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.errors import OverloadedError
from tests.support.waiting import eventually, wait_until


class Device:
    """Doubles numbers, and can be held so that a queue builds up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.busy.set()
        self.gate.wait()
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]

    def hold(self, batcher: MicroBatcher[int, int]) -> Future[int]:
        """Occupy the device thread with one item until the gate opens."""
        self.gate.clear()
        self.busy.clear()
        first = batcher.submit(0)
        self.busy.wait()
        return first


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def batcher(device: Device) -> Iterator[MicroBatcher[int, int]]:
    batcher = MicroBatcher(device, cost=lambda item: max(item, 1), max_batch_cost=10, max_queue=8)
    yield batcher
    device.gate.set()
    batcher.close()


async def test_an_event_loop_is_woken_once_for_a_batch(
    batcher: MicroBatcher[int, int], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    device.hold(batcher)
    tasks = [asyncio.create_task(batcher(i)) for i in (1, 2, 3)]
    await asyncio.sleep(0)
    woken: list[object] = []
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *arguments: woken.append(1) or wake(*arguments))
    device.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    assert len(woken) == 1


async def test_what_else_is_due_comes_between_the_results_of_a_batch(
    batcher: MicroBatcher[int, int], device: Device
) -> None:
    device.hold(batcher)
    turn = 0
    handed_over: list[int] = []

    async def wait() -> None:
        await batcher(1)
        handed_over.append(turn)

    tasks = [asyncio.create_task(wait()) for _ in range(8)]
    await asyncio.sleep(0)
    device.gate.set()

    def count_a_turn() -> bool:
        nonlocal turn
        turn += 1
        return all(task.done() for task in tasks)

    await eventually(count_a_turn, every_s=0)
    assert device.batches == [[0], [1] * 8]
    assert max(Counter(handed_over).values()) == 4


async def test_several_items_are_queued_at_once_or_not_at_all(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)
    task = asyncio.create_task(batcher.all([3, 1, 2]))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await batcher.all([1] * 6)
    device.gate.set()
    assert await task == [6, 2, 4]
    assert device.batches == [[0], [1, 2, 3]]
    # More items than the queue holds, but no other item waits.
    assert await batcher.all([1] * 20) == [2] * 20


def test_what_an_event_loop_left_behind_harms_nobody(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher(3), 0.01)

    async def leave() -> asyncio.Task[int]:
        task = asyncio.create_task(batcher(4))
        await asyncio.sleep(0)
        return task

    asyncio.run(give_up())
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(leave())
    loop.close()
    device.gate.set()
    assert batcher.submit(5).result() == 10
    assert [3] not in device.batches
    # Nothing will ever finish it; its loop is gone.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_each_caller_gets_its_own_result(batcher: MicroBatcher[int, int]) -> None:
    assert await asyncio.gather(*(batcher(i) for i in range(8))) == [2 * i for i in range(8)]


def test_what_queued_while_the_device_was_busy_is_one_batch(batcher: MicroBatcher[int, int], device: Device) -> None:
    first = device.hold(batcher)
    rest = [batcher.submit(i) for i in (1, 2, 3)]
    device.gate.set()
    assert [future.result() for future in (first, *rest)] == [0, 2, 4, 6]
    assert device.batches == [[0], [1, 2, 3]]


def test_what_is_queued_at_once_makes_the_same_batches_every_time(
    batcher: MicroBatcher[int, int], device: Device
) -> None:
    for _ in range(20):
        assert [future.result() for future in batcher.submit_all([6, 4, 1, 3])] == [12, 8, 2, 6]
    assert device.batches == [[4, 6], [1, 3]] * 20


def test_what_does_not_fit_into_the_queue_is_refused_as_a_whole(
    batcher: MicroBatcher[int, int], device: Device
) -> None:
    first = device.hold(batcher)
    waiting = batcher.submit_all([1] * 5)
    with pytest.raises(OverloadedError, match="5 inputs are already waiting"):
        batcher.submit_all([1] * 4)
    device.gate.set()
    assert [future.result() for future in (first, *waiting)] == [0, *[2] * 5]
    assert device.batches == [[0], [1] * 5]


def test_a_batch_closes_before_it_exceeds_its_cost(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)
    futures = [batcher.submit(i) for i in (6, 4, 1, 50, 2)]
    device.gate.set()
    assert [future.result() for future in futures] == [12, 8, 2, 100, 4]
    assert device.batches == [[0], [4, 6], [1, 2], [50]]


def test_a_full_queue_refuses_instead_of_growing(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)
    waiting = [batcher.submit(1) for _ in range(8)]
    with pytest.raises(OverloadedError, match="8 inputs are already waiting"):
        batcher.submit(1)
    device.gate.set()
    assert [future.result() for future in waiting] == [2] * 8


def test_a_cancelled_item_never_reaches_the_device(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)
    cancelled, kept = batcher.submit(3), batcher.submit(4)
    assert cancelled.cancel()
    device.gate.set()
    assert kept.result() == 8
    assert device.batches == [[0], [4]]
    with pytest.raises(CancelledError):
        cancelled.result()


async def test_cancelling_the_waiting_task_takes_its_item_out(batcher: MicroBatcher[int, int], device: Device) -> None:
    device.hold(batcher)
    task = asyncio.create_task(batcher(3))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    device.gate.set()
    assert await batcher(4) == 8
    assert [3] not in device.batches


def test_an_error_reaches_everyone_in_the_batch_and_nobody_else(
    batcher: MicroBatcher[int, int], device: Device
) -> None:
    device.hold(batcher)
    bad, neighbour = batcher.submit(-1), batcher.submit(1)
    device.gate.set()
    for future in (bad, neighbour):
        with pytest.raises(ValueError, match="negative"):
            future.result()
    assert batcher.submit(5).result() == 10


def test_closing_fails_those_who_wait_with_an_error_and_not_a_cancellation(
    batcher: MicroBatcher[int, int], device: Device
) -> None:
    running = device.hold(batcher)
    waiting = batcher.submit(1)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    with pytest.raises(OverloadedError, match="shutting down"):
        waiting.result()
    device.gate.set()
    closer.join()
    assert running.result() == 0
    with pytest.raises(OverloadedError):
        batcher.submit(1)


def test_eight_event_loops_in_eight_threads_share_one_device_thread(device: Device) -> None:
    batcher = MicroBatcher(device, cost=lambda item: max(item, 1), max_batch_cost=10)

    async def client(i: int) -> list[int]:
        results: list[int] = []
        for _ in range(20):
            kept = [asyncio.create_task(batcher(i + j)) for j in range(4)]
            given_up = asyncio.create_task(batcher(i))
            await asyncio.sleep(0)
            given_up.cancel()
            results += await asyncio.gather(*kept)
            assert given_up.cancelled()
        return results

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: asyncio.run(client(i)), range(8)))
    batcher.close()
    assert results == [[2 * (i + j) for j in range(4)] * 20 for i in range(8)]
    assert len(device.threads) == 1
    assert all(sum(max(item, 1) for item in batch) <= 10 or len(batch) == 1 for batch in device.batches)


def test_a_forgotten_batcher_keeps_nothing_alive_after_close() -> None:
    before = threading.active_count()
    batcher = MicroBatcher(list, cost=lambda _: 1, max_batch_cost=4)
    batcher.close()
    wait_until(lambda: threading.active_count() == before)
