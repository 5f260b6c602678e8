"""One deadline for a whole call, and a clear answer to who cancelled it.

Hosts take an ``asyncio.CancelledError`` that leaves an action for their own: NeMo Guardrails swallows one under
``rails.input.parallel`` and lets the main model answer. So only the cancellation of the calling task itself may pass;
one that comes from inside the call is a failure of the expert.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ctd_guardrail.errors import ExpertTimeoutError, ExpertUnavailableError

__all__ = ["within"]

T = TypeVar("T")


async def within(call: Awaitable[T], timeout_s: float | None) -> T:
    """Await a call to an expert.

    Args:
        call: The call. It is cancelled at the deadline, and when the calling task is.
        timeout_s: Seconds until the deadline; None: no deadline.

    Raises:
        ExpertTimeoutError: The deadline has passed.
        ExpertUnavailableError: The call was cancelled from inside.
        asyncio.CancelledError: The calling task was cancelled.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return await call
    except TimeoutError:
        if deadline.expired():
            raise ExpertTimeoutError(
                f"the expert did not answer within {timeout_s:g} s",
                hint="Raise expert.timeout_s or use a faster expert",
            ) from None
        raise ExpertUnavailableError("the connection to the expert timed out") from None
    except asyncio.CancelledError:
        if task and task.cancelling() > cancellations:
            raise
        raise ExpertUnavailableError("the call to the expert was cancelled from inside") from None
