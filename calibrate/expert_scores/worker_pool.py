"""Concurrent scoring with a write-ahead log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import stamina

from calibrate.expert_scores.score_log import Refusal
from ctd_guardrail.errors import (
    ExpertError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    InputError,
)
from ctd_guardrail.experts.protocol import Expert, ExpertScore
from ctd_guardrail.text.conversation import Conversation

__all__ = ["RequestLog", "WorkerPool"]

_ATTEMPTS: Final = 5


class RequestLog(Protocol):
    """The log of requests and scores: the score log itself, or a handle of the actor that holds it."""

    async def claim(self, conversation: str) -> bool:
        """Log the request for a conversation before it is sent, and return whether to send it."""
        ...

    async def release(self, conversation: str) -> None:
        """Delete the request of a conversation that got no answer."""
        ...

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk."""
        ...

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        """Return when the refusal is on the disk."""
        ...


@dataclass(slots=True)
class WorkerPool:
    """Workers that share the requests of one run. Each worker has one request in flight.

    Attributes:
        expert: The expert.
        log: Log of requests and scores.
        todo: Digest and conversation of each request.
        on_saved: Called after each score or refusal that was saved.
        tokens: Tokens billed so far; None if the expert does not report them.
        failure: The first error that ended the run.
    """

    expert: Expert
    log: RequestLog
    todo: Iterator[tuple[str, Conversation]]
    on_saved: Callable[[], None]
    tokens: int | None = None
    failure: ExpertError | None = None

    async def run(self, workers: int) -> None:
        """Score until no request is left or the expert fails. Requests in flight are then completed and saved.

        A conversation that the expert answers without a verdict, or cannot read, is saved as refused. Any other failure
        is the expert's own, and would occur at every request.
        """
        tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        try:
            # `wait` does not cancel the workers when this task is cancelled.
            await asyncio.wait(tasks) if tasks else None
        except asyncio.CancelledError:
            # Ctrl-C: requests in flight are billed, so their scores are saved.
            self.todo = iter(())
            await asyncio.wait(tasks)
            raise
        for task in tasks:
            task.result()

    async def _ask(self, conversation: Conversation) -> ExpertScore:
        # A run of hours should not end at one dropped connection. In service there are no retries: a user waits for the
        # answer, and every attempt counts towards the budget.
        async for attempt in stamina.retry_context(
            on=_is_transient, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=20.0
        ):
            with attempt:
                return await self.expert.score(conversation)
        raise AssertionError("the last attempt returns or raises")

    async def _work(self) -> None:
        try:
            while (item := next(self.todo, None)) is not None:
                digest, conversation = item
                if not await self.log.claim(digest):
                    continue
                try:
                    score = await self._ask(conversation)
                except (ExpertVerdictError, InputError) as error:
                    await self.log.refuse(digest, Refusal(error.problem, error.hint))
                    self.on_saved()
                    continue
                except ExpertError as error:
                    self.failure = self.failure or error
                    await self.log.release(digest)
                    return
                await self.log.save(digest, score)
                if score.tokens is not None:
                    self.tokens = (self.tokens or 0) + score.tokens
                self.on_saved()
        finally:
            # If one worker ends, the others send no further request.
            self.todo = iter(())


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ExpertUnavailableError):
        return error.is_transient
    return isinstance(error, ExpertTimeoutError)
