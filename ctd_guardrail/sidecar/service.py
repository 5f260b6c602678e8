"""The life of a guard in a service: loaded, tested, ready, replaced, drained."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import Prepared, read
from ctd_guardrail.assembly.self_test import self_test
from ctd_guardrail.decision import Decision
from ctd_guardrail.errors import CtdError, OverloadedError
from ctd_guardrail.observability.service_metrics import show_service
from ctd_guardrail.sidecar.connections import ConnectionCounts

__all__ = ["Service", "Status"]

log = logging.getLogger(__name__)

_TEST_AGAIN_S: Final = 5.0
_SUPERSEDED_S: Final = 60.0


class Status(StrEnum):
    """State of the service."""

    LOADING = "loading"
    FAILED = "failed"
    FAILING_SELF_TEST = "failing its self-test"
    READY = "ready"
    DRAINING = "draining"


class _InService:
    """A guard and its number of requests in progress."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def check(self, messages: Iterable[Mapping[str, Any]], overrides: object, principal: object) -> Decision:
        self.running += 1
        self.idle.clear()
        try:
            return await self.guard.check(messages, overrides, principal=principal)
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def retire(self) -> None:
        """Wait for the requests in progress, then release the experts."""
        try:
            await asyncio.wait_for(self.idle.wait(), _SUPERSEDED_S)
        except TimeoutError:
            log.warning("a replaced guard still had %d requests in progress", self.running)
        await self.guard.aclose()


class Service:
    """The guard of one configuration folder. All methods belong to one event loop.

    Args:
        folder: NeMo Guardrails configuration folder.
        test_again_s: Seconds between self-tests while they fail.

    Attributes:
        status: State of the service.
        reloads: Number of reloads that took effect.
        refused: Number of answers without a verdict since the start, by HTTP status.
        connections: Connections that are open, and those that were closed since the start.
    """

    def __init__(self, folder: Path, *, test_again_s: float = _TEST_AGAIN_S) -> None:
        self.status = Status.LOADING
        self.reloads = 0
        self.refused: Counter[int] = Counter()
        self.connections = ConnectionCounts()
        self._folder = folder
        self._test_again_s = test_again_s
        self._current: _InService | None = None
        self._drains_in_service = False
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        show_service(self)

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come here."""
        return self.status is Status.READY and not (self.alarms and self._asks_to_stop_at_alarms)

    @property
    def is_draining(self) -> bool:
        """Whether the service is about to end."""
        return self.status is Status.DRAINING

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that are raised."""
        watch = None if self._current is None else self._current.guard.watch
        return [] if watch is None else [name for name, raised_at in watch.alarms.items() if raised_at is not None]

    @property
    def running(self) -> int:
        """Requests in progress."""
        return 0 if self._current is None else self._current.running

    @property
    def _asks_to_stop_at_alarms(self) -> bool:
        monitor = None if self._current is None else self._current.guard.config.monitor
        return monitor is not None and monitor.on_alarm == "not_ready"

    @property
    def is_serving(self) -> bool:
        """Whether requests are answered. A guard that was ready answers while draining, too."""
        is_in_service = self.status is Status.READY or (self.status is Status.DRAINING and self._drains_in_service)
        return self._current is not None and is_in_service

    async def start(self, prepared: Prepared | None = None) -> None:
        """Load the guard and test it until it passes.

        Args:
            prepared: The folder as it was read; None: it is read now.

        Raises:
            CtdError: The configuration, the policy, the base model or the expert is not usable.
        """
        async with self._reloading:
            if prepared is None:
                prepared = await asyncio.to_thread(read, self._folder)
            self._current = await _load(prepared)
        await self._until_ready()

    async def _until_ready(self) -> None:
        """Test the current guard until it passes, or until a reload replaces it."""
        guard = self._current
        while guard is not None and self.status not in {Status.READY, Status.DRAINING}:
            has_passed = await self._passes(guard)
            if self._current is not guard:
                return
            self._become(Status.READY if has_passed else Status.FAILING_SELF_TEST)
            if not has_passed:
                await asyncio.sleep(self._test_again_s)

    @property
    def principal_header(self) -> str | None:
        """Header in which a request names its principal; None: principals are not used."""
        where = None if self._current is None else self._current.guard.principal
        return None if where is None else where.header

    async def check(
        self, messages: Iterable[Mapping[str, Any]], overrides: object = None, *, principal: object = None
    ) -> Decision:
        """Decide about a conversation; see :meth:`Guard.check`.

        Raises:
            OverloadedError: There is no guard yet.
        """
        if self._current is None:
            raise OverloadedError("the guard is not loaded yet")
        return await self._current.check(messages, overrides, principal)

    async def reload(self) -> bool:
        """Read the configuration again and put it in place, if it is sound and passes its self-test.

        Requests in progress end with the guard that they began with. If both configurations name the same base model,
        they share it. Otherwise the old one is freed first, so that two are never in memory. Until the new one is
        loaded, and if it cannot be loaded, there is no guard and no verdict.

        Returns:
            Whether the new configuration is in place; if not, the reason is logged.
        """
        async with self._reloading:
            try:
                prepared = await asyncio.to_thread(read, self._folder)
                guard = self._current
                if guard is not None and prepared.has_base_model_of(guard.guard):
                    reloaded = await self._exchange(guard, prepared)
                else:
                    del guard
                    reloaded = await self._restart(prepared)
            except CtdError as error:
                log.error("reload refused, the old configuration stays: %s", error)  # noqa: TRY400  # says it all
                return False
        # Outside of the lock: a self-test that fails may need another reload to pass.
        await self._until_ready()
        if reloaded:
            self.reloads += 1
            log.info("configuration reloaded")
        return reloaded

    async def _exchange(self, old: _InService, prepared: Prepared) -> bool:
        new = await _load(prepared)
        if not await self._passes(new):
            log.error("reload refused, the old configuration stays: the new one fails its self-test")
            await new.guard.aclose()
            return False
        self._current = new
        self._become(Status.READY)
        task = asyncio.create_task(old.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def _restart(self, prepared: Prepared) -> bool:
        """Free the old base model, then load the new one."""
        self._become(Status.LOADING)
        if self._current is not None:
            await self._current.retire()
            self._current = None
        await asyncio.to_thread(gc.collect)  # its memory is free before the next one is loaded
        try:
            self._current = await _load(prepared)
        except CtdError as error:
            self._become(Status.FAILED)
            log.error("there is no guard: %s", error)  # noqa: TRY400  # says it all
            return False
        return True

    def drain(self) -> None:
        """Ask for no more traffic. Requests that still come are answered as before."""
        self._drains_in_service |= self.status is Status.READY
        self._become(Status.DRAINING)

    async def aclose(self) -> None:
        """Release the experts."""
        self._become(Status.DRAINING)
        await asyncio.gather(*self._retiring)
        if self._current is not None:
            await self._current.guard.aclose()

    def stats(self) -> dict[str, Any]:
        """Return counts since the start or the last reload, and the budget that applies to them."""
        connections = {
            "open": self.connections.open,
            "most": self.connections.most,
            "closed": dict(sorted(self.connections.closed.items())),
        }
        if self._current is None:
            return {"status": self.status, "connections": connections}
        guard = self._current.guard
        counts, running = guard.tally.snapshot(), guard.plan
        return {
            "status": self.status,
            "total": counts.total,
            "delegated": counts.delegated,
            "failures": counts.failures,
            "bypassed": sum(counts.bypasses.values()),
            "expert_attempts": counts.expert_attempts,
            "expert_tokens": counts.expert_tokens,
            "recalled": counts.recalled,
            "requests": counts.requests,
            "calls": counts.calls,
            "unscreened_calls": counts.unscreened_calls,
            "refused": {str(status): count for status, count in sorted(self.refused.items())},
            "connections": connections,
            "running": self.running,
            "reloads": self.reloads,
            "shadow": counts.shadow,
            "alpha": running.alpha,
            "delta": running.certificate.delta,
            "expected_rate": running.expected_rate,
            "pace": None if guard.paced is None else guard.paced.state(),
            "rates": None if guard.watch is None else guard.watch.report(),
            "alarms": self.alarms,
            "experts": {
                name or "default": {
                    "enabled": expert.is_enabled,
                    "breaker": None if expert.breaker is None else expert.breaker.state,
                    "waiting": None if expert.bulkhead is None else expert.bulkhead.waiting,
                }
                for name, expert in guard.experts.items()
            },
            "bypasses": [
                {"reason": reason, "on_failure": policy, "verdict": verdict, "count": count}
                for (reason, policy, verdict), count in sorted(counts.bypasses.items())
            ],
            "decisions": [
                {"verdict": verdict, "route": route, "reason": reason, "count": count}
                for (verdict, route, reason), count in sorted(counts.decisions.items())
            ],
        }

    def _become(self, status: Status) -> None:
        if self.status is not status and not self.is_draining:  # draining is for good
            log.info("the guard is %s", status)
            self.status = status

    async def _passes(self, guard: _InService) -> bool:
        results = await self_test(guard.guard)
        failed = [result for result in results if not result.has_passed]
        for result in failed:
            log.error(
                "self-test %s: expected %s, got %s (%s)",
                result.name,
                result.expected,
                result.decision.verdict,
                result.decision.reason,
            )
        return not failed


async def _load(prepared: Prepared) -> _InService:
    return _InService(await asyncio.to_thread(prepared.load, in_service=True))
