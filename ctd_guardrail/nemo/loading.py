"""A guard whose models load on a thread, while the event loop of the host goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.config.limits import PrincipalConfig
from ctd_guardrail.decision import Decision, Mode, Reason, Route, Verdict
from ctd_guardrail.errors import CtdError
from ctd_guardrail.observability.events import Decided, UnscreenedCall
from ctd_guardrail.observability.request import REQUEST_ID
from ctd_guardrail.observability.tally import Tally

__all__ = ["LoadingGuard"]

log = logging.getLogger(__name__)


class LoadingGuard:
    """Lets the first inputs wait for the models, and blocks every input if they cannot be loaded.

    An input that waits longer than its deadline is blocked under every failure policy, because no model has read it.

    Args:
        load: Loads the models; called on a thread.
        mode: Whether the block counts.
        principal: Where a request names its principal.
        deadline_s: Seconds until a request has its decision, including the wait for the models; None: no deadline.
    """

    def __init__(
        self,
        load: Callable[[], Guard],
        *,
        mode: Mode = Mode.ENFORCE,
        principal: PrincipalConfig | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self._mode = mode
        self.principal = principal
        self._deadline_s = deadline_s
        self._unready = Tally()
        self._loaded: Future[Guard] = Future()
        # A running future cannot be cancelled by an input that waits for it.
        self._loaded.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=_run, args=(load, self._loaded), name="ctd-loading", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether the models could not be loaded."""
        return self._loaded.done() and self._loaded.exception() is not None

    @property
    def tally(self) -> Tally:
        """Counts of all decisions; before the models are loaded, of the blocks for that reason."""
        return self._loaded.result().tally if self._loaded.done() and not self.has_failed else self._unready

    async def check(
        self,
        messages: Iterable[Mapping[str, Any]],
        overrides: object = None,
        *,
        principal: object = None,
        asides: Iterable[str] = (),
    ) -> Decision:
        """Decide about a conversation as soon as the models are loaded; see :meth:`Guard.check`."""
        # A loaded guard keeps the deadline itself, under its own failure policy.
        deadline = asyncio.timeout(None if self._loaded.done() else self._deadline_s)
        try:
            async with deadline:
                guard = await self._wait()
                if guard is None:
                    return self._refuse(Reason.NOT_READY)
                return await guard.check(messages, overrides, principal=principal, asides=asides)
        except TimeoutError:
            if not deadline.expired():
                raise
            return self._refuse(Reason.DEADLINE)

    async def _wait(self) -> Guard | None:
        """Return the guard once it is loaded; None if loading failed, which was logged then."""
        try:
            if not self._loaded.done():
                await asyncio.wrap_future(self._loaded)
            return self._loaded.result()
        except Exception:  # noqa: BLE001  # the gate stays closed after any error
            return None

    def _refuse(self, reason: Reason) -> Decision:
        decision = Decision(verdict=Verdict.BLOCK, route=Route.PROBE, reason=reason, mode=self._mode)
        emit = self._loaded.result().emit if self._loaded.done() and not self.has_failed else self._unready
        emit(Decided(decision, time.time(), request_id=REQUEST_ID.get()))
        return decision

    def count_unscreened_call(self, door: str) -> None:
        """Report a call of the main LLM without a verdict, as soon as the guard is loaded."""

        def report(loaded: Future[Guard]) -> None:
            emit = self._unready if loaded.exception() is not None else loaded.result().emit
            emit(UnscreenedCall(door))

        self._loaded.add_done_callback(report)

    def note_answer(self, answer: str | Mapping[str, Any]) -> None:
        """Remember an answer of the main LLM, as soon as the guard is loaded; see :meth:`Guard.note_answer`.

        A guard that could not be loaded blocks every input, so it remembers nothing.
        """
        if self._loaded.done():
            if not self.has_failed:
                self._loaded.result().note_answer(answer)
            return

        def note(loaded: Future[Guard]) -> None:
            if loaded.exception() is None:
                loaded.result().note_answer(answer)

        self._loaded.add_done_callback(note)

    def close(self) -> None:
        """Wait until loading has ended. Runs when the runtime is closed."""
        self._thread.join()


def _run(load: Callable[[], Guard], loaded: Future[Guard]) -> None:
    # The thread holds the future and not the guard, so that an unused guard can be collected.
    try:
        loaded.set_result(load())
    except BaseException as error:  # noqa: BLE001  # no input may wait for ever
        log.error("the guard could not be loaded and blocks every input: %s", _cause(error))  # noqa: TRY400  # no text
        loaded.set_exception(error)


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, CtdError) else type(error).__name__
