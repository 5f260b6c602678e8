import asyncio

import pytest

from ctd_guardrail.errors import ExpertTimeoutError, ExpertUnavailableError
from ctd_guardrail.experts.bounded.deadline import Deadline, within


async def _cancelled_inside() -> None:
    raise asyncio.CancelledError


async def test_the_result_passes_through() -> None:
    assert await within(asyncio.sleep(0, "result"), Deadline.after(5)) == "result"
    assert await within(asyncio.sleep(0, "result"), None) == "result"


async def test_the_deadline_is_a_timeout() -> None:
    with pytest.raises(ExpertTimeoutError, match=r"within 0\.01 s"):
        await within(asyncio.sleep(5), Deadline.after(0.01))


async def test_a_timeout_of_the_call_itself_is_not_the_deadline() -> None:
    async def times_out() -> None:
        raise TimeoutError

    with pytest.raises(ExpertUnavailableError):
        await within(times_out(), Deadline.after(5))


async def test_a_cancellation_from_inside_is_a_failure() -> None:
    with pytest.raises(ExpertUnavailableError):
        await within(_cancelled_inside(), Deadline.after(5))


async def test_the_callers_cancellation_passes_and_cancels_the_call() -> None:
    state: list[str] = []

    async def call() -> None:
        state.append("started")
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            state.append("cancelled")
            raise

    task = asyncio.create_task(within(call(), Deadline.after(5)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state == ["started", "cancelled"]


async def test_an_earlier_cancellation_that_was_handled_does_not_count() -> None:
    async def cleaning_up() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await within(_cancelled_inside(), Deadline.after(5))

    task = asyncio.create_task(cleaning_up())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ExpertUnavailableError):
        await task
