"""A guard that only counts."""

from __future__ import annotations

import asyncio
from typing import Any

from ctd_guardrail.decision import Decision, Reason, Route, Verdict

__all__ = ["CountingGuard"]


class CountingGuard:
    """Stands in for the guard: takes its time, and knows what became of its calls."""

    def __init__(self) -> None:
        self.started = self.ended = self.cancelled = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self.principals: list[object] = []

    async def check(self, messages: Any, overrides: object = None, *, principal: object = None) -> Decision:
        self.started += 1
        self.principals.append(principal)
        try:
            if self.error is not None:
                raise self.error
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        return Decision(Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE)
