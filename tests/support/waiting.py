"""The two waits of the tests: both poll a condition, and both end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["eventually", "wait_until"]


def wait_until(
    condition: Callable[[], object],
    *,
    within_s: float = 60.0,
    every_s: float = 0.01,
    explain: Callable[[], object] = lambda: "the condition stayed false",
) -> None:
    """Poll a condition on this thread until the condition holds.

    Args:
        condition: Is called again and again. What it raises ends the wait.
        within_s: Longest wait.
        every_s: Pause between two polls.
        explain: Text of the error.

    Raises:
        AssertionError: If the condition does not hold in time.
    """
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(every_s)


async def eventually(condition: Callable[[], object], *, within_s: float = 60.0, every_s: float = 0.001) -> None:
    """Poll a condition between other tasks of this event loop until the condition holds.

    The condition reads state of another thread, or state that has no event to wait for.

    Args:
        condition: Is called again and again.
        within_s: Longest wait.
        every_s: Pause between two polls; 0 gives other tasks one turn.

    Raises:
        AssertionError: If the condition does not hold in time.
    """
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition stayed false"
        await asyncio.sleep(every_s)
