"""The guard's life in a service: loaded, tested, ready, replaced, drained."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.assembly.self_test import self_test
from ctd_guardrail.assembly.standalone import StandaloneGuard, has_base_model_of, load_guard
from ctd_guardrail.decision import Decision
from ctd_guardrail.errors import CtdError, OverloadedError
from ctd_guardrail.observability.service_metrics import show_service
from ctd_guardrail.sidecar.connections import ConnectionCounts

__all__ = ["Service", "Status"]

log = logging.getLogger(__name__)

_TEST_AGAIN_S: Final = 5.0
_SUPERSEDED_S: Final = 60.0


class Status(StrEnum):
    """Where the service is in its life."""

    LOADING = "loading"
    FAILED = "failed"
    FAILING_SELF_TEST = "failing its self-test"
    READY = "ready"
    DRAINING = "draining"


class _InService:
    """A guard and how many requests it is working on."""

    def __init__(self, guard: StandaloneGuard) -> None:
        self.loaded = guard
        self.cascade = guard.cascade
        self.running = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def check(self, messages: Iterable[Mapping[str, Any]], overrides: object, principal: object) -> Decision:
        self.running += 1
        self.idle.clear()
        try:
            return await self.cascade.check(messages, overrides, principal=principal)
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def retire(self) -> None:
        """Let running requests end, then release the expert."""
        try:
            await asyncio.wait_for(self.idle.wait(), _SUPERSEDED_S)
        except TimeoutError:
            log.warning("a replaced guard still had %d requests under way", self.running)
        await self.cascade.aclose()


class Service:
    """The guard of one configuration folder. All methods belong to one event loop.

    Args:
        folder: NeMo Guardrails configuration folder.
        test_again_s: Seconds between self-tests as long as they fail.

    Attributes:
        status: Where the service is in its life.
        reloads: Number of reloads that took effect.
        refused: Number of answers without a verdict since the start, by HTTP status.
        connections: What is open, and what was closed since the start.
    """

    def __init__(self, folder: Path, *, test_again_s: float = _TEST_AGAIN_S) -> None:
        self.status = Status.LOADING
        self.reloads = 0
        self.refused: Counter[int] = Counter()
        self.connections = ConnectionCounts()
        self._folder = folder
        self._test_again_s = test_again_s
        self._guard: _InService | None = None
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
        watch = None if self._guard is None else self._guard.cascade.watch
        return [] if watch is None else [name for name, raised_at in watch.alarms.items() if raised_at is not None]

    @property
    def running(self) -> int:
        """Requests under way."""
        return 0 if self._guard is None else self._guard.running

    @property
    def _asks_to_stop_at_alarms(self) -> bool:
        monitor = None if self._guard is None else self._guard.loaded.rail.config.monitor
        return monitor is not None and monitor.on_alarm == "not_ready"

    @property
    def is_serving(self) -> bool:
        """Whether requests are answered: also while draining, by a guard that was ready before."""
        is_in_service = self.status is Status.READY or (self.status is Status.DRAINING and self._drains_in_service)
        return self._guard is not None and is_in_service

    async def start(self) -> None:
        """Load the guard and test it until it passes.

        Raises:
            CtdError: The configuration, the policy, the base model or the expert is not usable.
        """
        async with self._reloading:
            self._guard = _InService(await asyncio.to_thread(load_guard, self._folder, in_service=True))
        await self._until_ready()

    async def _until_ready(self) -> None:
        """Test the guard in place until it passes, or until a reload has put another one in its place."""
        guard = self._guard
        while guard is not None and self.status not in {Status.READY, Status.DRAINING}:
            has_passed = await self._passes(guard)
            if self._guard is not guard:
                return
            self._become(Status.READY if has_passed else Status.FAILING_SELF_TEST)
            if not has_passed:
                await asyncio.sleep(self._test_again_s)

    @property
    def principal_header(self) -> str | None:
        """Header in which a request names its principal; None: nobody asks."""
        where = None if self._guard is None else self._guard.cascade.principal
        return None if where is None else where.header

    async def check(
        self, messages: Iterable[Mapping[str, Any]], overrides: object = None, *, principal: object = None
    ) -> Decision:
        """Decide about a conversation; see :meth:`Guard.check`.

        Raises:
            OverloadedError: There is no guard yet.
        """
        if self._guard is None:
            raise OverloadedError("the guard is not loaded yet")
        return await self._guard.check(messages, overrides, principal)

    async def reload(self) -> bool:
        """Read the configuration again and, where it is sound and passes its self-test, put it in place.

        Requests that are under way end with the guard that they began with. A base model that both configurations
        name is shared. Another one is loaded when the old one has gone, so that two are never in memory; meanwhile,
        and where it cannot be loaded, there is no guard and no verdict.

        Returns:
            Whether the new configuration is in place; the reason is logged where it is not.
        """
        async with self._reloading:
            try:
                guard = self._guard
                if guard is not None and await asyncio.to_thread(has_base_model_of, self._folder, guard.loaded):
                    reloaded = await self._replace(guard)
                else:
                    del guard
                    reloaded = await self._restart()
            except CtdError as error:
                log.error("reload refused, the old configuration stays: %s", error)  # noqa: TRY400  # says it all
                return False
        # Not while others are kept from reloading: a self-test that fails may need another configuration to pass.
        await self._until_ready()
        if reloaded:
            self.reloads += 1
            log.info("configuration reloaded")
        return reloaded

    async def _replace(self, old: _InService) -> bool:
        new = _InService(await asyncio.to_thread(load_guard, self._folder, in_service=True))
        if not await self._passes(new):
            log.error("reload refused, the old configuration stays: the new one fails its self-test")
            await new.cascade.aclose()
            return False
        self._guard = new
        self._become(Status.READY)
        task = asyncio.create_task(old.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def _restart(self) -> bool:
        """Let go of the old base model, then load the new one."""
        self._become(Status.LOADING)
        if self._guard is not None:
            await self._guard.retire()
            self._guard = None
        await asyncio.to_thread(gc.collect)  # its memory is free before the next one is loaded
        try:
            self._guard = _InService(await asyncio.to_thread(load_guard, self._folder, in_service=True))
        except CtdError as error:
            self._become(Status.FAILED)
            log.error("there is no guard: %s", error)  # noqa: TRY400  # says it all
            return False
        return True

    def drain(self) -> None:
        """Ask for no more traffic; what still comes is answered where it was before."""
        self._drains_in_service |= self.status is Status.READY
        self._become(Status.DRAINING)

    async def aclose(self) -> None:
        """Release the expert."""
        self._become(Status.DRAINING)
        await asyncio.gather(*self._retiring)
        if self._guard is not None:
            await self._guard.cascade.aclose()

    def stats(self) -> dict[str, Any]:
        """Return counts since the start, or since the last reload, and the budget that they are measured by."""
        connections = {
            "open": self.connections.open,
            "most": self.connections.most,
            "closed": dict(sorted(self.connections.closed.items())),
        }
        if self._guard is None:
            return {"status": self.status, "connections": connections}
        counts = self._guard.cascade.tally.snapshot()
        planned = self._guard.loaded.planned
        return {
            "status": self.status,
            "total": counts.total,
            "delegated": counts.delegated,
            "failures": counts.failures,
            "bypassed": sum(counts.bypasses.values()),
            "expert_attempts": counts.expert_attempts,
            "expert_tokens": counts.expert_tokens,
            "recalled": counts.recalled,
            "unscreened_calls": counts.unscreened_calls,
            "refused": {str(status): count for status, count in sorted(self.refused.items())},
            "connections": connections,
            "running": self.running,
            "reloads": self.reloads,
            "shadow": counts.shadow,
            "alpha": planned.alpha,
            "delta": planned.certificate.delta,
            "expected_rate": planned.expected_rate,
            "alarms": self.alarms,
            "experts": {
                name or "default": {
                    "enabled": expert.is_enabled,
                    "breaker": None if expert.breaker is None else expert.breaker.state,
                    "waiting": None if expert.bulkhead is None else expert.bulkhead.waiting,
                }
                for name, expert in self._guard.cascade.experts.items()
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
        results = await self_test(guard.cascade, guard.loaded.rail.config)
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
