"""The cancellation of the calling task, as opposed to one from inside a call that it awaits.

Hosts take an ``asyncio.CancelledError`` that leaves an action for their own: NeMo Guardrails swallows it under
``rails.input.parallel`` and lets the main model answer. So only the cancellation of the calling task may pass. A
cancellation from inside a call is a failure of that call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["watch_cancellation"]


def watch_cancellation() -> Callable[[], bool]:
    """Return a function that returns whether the current task was cancelled after this call.

    Call this before the ``try``. A task that survived an earlier cancellation keeps its count of cancellations, so
    the count alone does not show whether this call was cancelled.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    return lambda: task is not None and task.cancelling() > before
