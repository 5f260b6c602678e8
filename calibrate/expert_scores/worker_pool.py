"""Questions for the expert, asked a few at a time, each written down before it is asked and saved before it counts."""

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

__all__ = ["Book", "WorkerPool"]

_ATTEMPTS: Final = 5


class Book(Protocol):
    """What is written down about questions and scores: the journal, or a way to the actor that keeps it."""

    async def claim(self, conversation: str) -> bool:
        """Write down that a question is about to be asked, and return whether it shall be."""
        ...

    async def release(self, conversation: str) -> None:
        """Strike out a question that got no answer."""
        ...

    async def save(self, conversation: str, score: ExpertScore) -> None:
        """Return when the score is on the disk."""
        ...

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        """Return when it is on the disk that the expert gives no score for this conversation."""
        ...


@dataclass(slots=True)
class WorkerPool:
    """The questions of one run, shared by workers that each have one under way.

    Attributes:
        expert: Whom to ask.
        book: Where questions and scores are written down.
        todo: Digest and conversation of each question.
        on_saved: Called after each score or refusal that was saved.
        tokens: Tokens billed so far; None where the expert does not say.
        failure: Why the expert failed for good, at the first question at which it did.
    """

    expert: Expert
    book: Book
    todo: Iterator[tuple[str, Conversation]]
    on_saved: Callable[[], None]
    tokens: int | None = None
    failure: ExpertError | None = None

    async def run(self, workers: int) -> None:
        """Ask until nothing is left, or the expert fails for good; what is under way then is waited for and saved.

        A conversation that the expert answers without a verdict, or cannot read, is written down as refused: the
        next one may do better. Any other failure is the expert's own, and would meet every question.
        """
        tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        try:
            # `wait`, because it leaves the workers alone when this task is cancelled.
            await asyncio.wait(tasks) if tasks else None
        except asyncio.CancelledError:
            # Ctrl-C: what is under way has been paid for.
            self.todo = iter(())
            await asyncio.wait(tasks)
            raise
        for task in tasks:
            task.result()

    async def _ask(self, conversation: Conversation) -> ExpertScore:
        # A run of hours should not end at one dropped connection. In service nothing is asked again: there somebody
        # waits for the answer, and every attempt counts towards the budget.
        async for attempt in stamina.retry_context(
            on=_is_worth_another_try, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=20.0
        ):
            with attempt:
                return await self.expert.score(conversation)
        raise AssertionError("the last attempt returns or raises")

    async def _work(self) -> None:
        try:
            while (item := next(self.todo, None)) is not None:
                digest, conversation = item
                if not await self.book.claim(digest):
                    continue
                try:
                    score = await self._ask(conversation)
                except (ExpertVerdictError, InputError) as error:
                    await self.book.refuse(digest, Refusal(error.problem, error.hint))
                    self.on_saved()
                    continue
                except ExpertError as error:
                    self.failure = self.failure or error
                    await self.book.release(digest)
                    return
                await self.book.save(digest, score)
                if score.tokens is not None:
                    self.tokens = (self.tokens or 0) + score.tokens
                self.on_saved()
        finally:
            # Whatever ended this worker, nothing new is worth asking.
            self.todo = iter(())


def _is_worth_another_try(error: Exception) -> bool:
    if isinstance(error, ExpertUnavailableError):
        return error.is_transient
    return isinstance(error, ExpertTimeoutError)
