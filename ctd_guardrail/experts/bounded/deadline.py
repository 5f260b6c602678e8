"""One deadline for a whole question to the expert, and the end of a call that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Self, TypeVar

from ctd_guardrail.errors import ExpertTimeoutError, ExpertUnavailableError
from ctd_guardrail.runtime.cancellation import watch_cancellation

__all__ = ["Deadline", "within"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a question.

    Attributes:
        timeout_s: Seconds that the question may take in all.
        end: Time of the running event loop.
    """

    timeout_s: float
    end: float

    @classmethod
    def after(cls, timeout_s: float) -> Self:
        """Return the deadline of a question that begins now."""
        return cls(timeout_s, asyncio.get_running_loop().time() + timeout_s)

    @property
    def left_s(self) -> float:
        """Seconds until the end; negative after it."""
        return self.end - asyncio.get_running_loop().time()


async def within(call: Awaitable[T], deadline: Deadline | None) -> T:
    """Await a call to an expert.

    Args:
        call: The call. It is cancelled at the deadline, and when the calling task is.
        deadline: The deadline; None: there is none.

    Raises:
        ExpertTimeoutError: The deadline has passed.
        ExpertUnavailableError: The call was cancelled from inside.
        asyncio.CancelledError: The calling task was cancelled.
    """
    is_cancelled = watch_cancellation()
    timeout = asyncio.timeout_at(None if deadline is None else deadline.end)
    try:
        async with timeout:
            return await call
    except TimeoutError:
        if deadline is not None and timeout.expired():
            raise ExpertTimeoutError(
                f"the expert did not answer within {deadline.timeout_s:g} s",
                hint="Raise expert.timeout_s or use a faster expert",
            ) from None
        raise ExpertUnavailableError(
            "the connection to the expert timed out", hint="Check that the server of the expert is up"
        ) from None
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise ExpertUnavailableError("the expert cancelled its own call") from None
