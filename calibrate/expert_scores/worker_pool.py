"""Concurrent scoring with a write-ahead log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from calibrate.expert_scores.score_log import Refusal
from ctd_guardrail.errors import ExpertError, ExpertVerdictError, InputError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.protocol import Expert, ExpertScore
from ctd_guardrail.text.conversation import Conversation

__all__ = ["RequestLog", "WorkerPool"]

# A run of hours should not end at one dropped connection or one slow answer.
_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.5


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

    async def _work(self) -> None:
        # Each attempt has the expert's own deadline. All of them together have none: no user waits for the answer.
        expert = BoundedExpert(self.expert, attempts=_ATTEMPTS, retries_timeouts=True, first_pause_s=_FIRST_PAUSE_S)
        try:
            while (item := next(self.todo, None)) is not None:
                digest, conversation = item
                if not await self.log.claim(digest):
                    continue
                try:
                    score = await expert.score(conversation)
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
