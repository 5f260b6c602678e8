"""Expert scores of the rows: asked for a few at a time, saved one by one, never asked for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import stamina
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from calibrate.data import Dataset
from calibrate.journal import Journal
from ctd_guardrail.conversation import Conversation
from ctd_guardrail.errors import ExpertError, ExpertTimeoutError, ExpertUnavailableError, InputError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.config import ExpertConfig, OpenAIExpertConfig
from ctd_guardrail.experts.protocol import Expert, ExpertScore

__all__ = ["ExpertScores", "ask_expert", "score_with"]

_ATTEMPTS: Final = 5
# Enough to fill the device or the wire for experts that state no limit of their own.
_CONCURRENCY: Final = 32

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """What the expert says about the rows.

    Attributes:
        p: P(unsafe), shape [rows].
        asked: Conversations that this run asked about.
        tokens: Tokens billed for them; None where the expert does not say.
    """

    p: FloatArray
    asked: int = 0
    tokens: int | None = None


def score_with(
    section: ExpertConfig, dataset: Dataset, rows: IntArray, *, cache: Path, progress: Progress
) -> tuple[str, ExpertScores]:
    """Build an expert, score the rows with it, and release it; return its identity and the scores.

    Args:
        section: The expert.
        dataset: The rows.
        rows: Indices of those to score.
        cache: Folder of the journal of saved scores.
        progress: Where a bar is drawn.

    Raises:
        ExpertError, DataError: As :func:`ask_expert` does.
    """
    expert = build_expert(section)
    concurrency = section.max_concurrency if isinstance(section, OpenAIExpertConfig) else _CONCURRENCY

    async def ask() -> ExpertScores:
        try:
            return await ask_expert(
                dataset, rows, expert, journal=cache / "expert.sqlite", concurrency=concurrency, progress=progress
            )
        finally:
            await expert.aclose()

    return expert.identity, asyncio.run(ask())


async def ask_expert(
    dataset: Dataset, rows: IntArray, expert: Expert, *, journal: Path, concurrency: int, progress: Progress
) -> ExpertScores:
    """Score rows, taking from the journal what an earlier run has paid for.

    What may pass (a timeout, HTTP 429 or 503, a dropped connection) is tried again a few times, ever more slowly. At
    the first failure that stays no further question is asked; those under way are waited for and saved.

    Args:
        dataset: The rows.
        rows: Indices of those to score.
        expert: Whom to ask.
        journal: File of saved scores.
        concurrency: Questions that may be under way at once.
        progress: Where a bar is drawn.

    Raises:
        ExpertError: The expert failed; the message says how many scores are saved.
        DataError: The expert cannot read a row; file and row are named. Or the journal cannot be read.
    """
    digests = [dataset.conversations[row].digest() for row in rows]
    with Journal(journal, expert.identity) as saved:
        scores = saved.known(digests)
        first = {digest: int(row) for digest, row in zip(digests, rows, strict=True)}
        missing = {digest: row for digest, row in first.items() if digest not in scores}
        bar = progress.add_task("Expert scores", total=len(first), completed=len(first) - len(missing))
        errand = _Errand(dataset.conversations, expert, saved, progress, bar, iter(missing.items()))
        await errand.run(min(concurrency, len(missing)))
    scores |= errand.scores
    if errand.failure is not None:
        row, error = errand.failure
        if isinstance(error, InputError):
            raise dataset.error(row, error.problem, hint=error.hint) from error
        raise type(error)(
            f"{error.problem}; {len(scores)} of {len(first)} expert scores are saved in {journal}",
            hint=f"{error.hint + '. ' if error.hint else ''}Run the command again to go on from there",
        ) from error
    return ExpertScores(np.array([scores[digest] for digest in digests]), len(missing), errand.tokens)


def _is_worth_another_try(error: Exception) -> bool:
    if isinstance(error, ExpertUnavailableError):
        return error.is_transient
    return isinstance(error, ExpertTimeoutError)


@dataclass(slots=True)
class _Errand:
    """The questions of one run, shared by workers that each have one under way."""

    conversations: Sequence[Conversation]
    expert: Expert
    journal: Journal
    progress: Progress
    bar: TaskID
    todo: Iterator[tuple[str, int]]
    scores: dict[str, float] = field(default_factory=dict)
    tokens: int | None = None
    failure: tuple[int, ExpertError | InputError] | None = None

    async def run(self, workers: int) -> None:
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

    async def _ask(self, row: int) -> ExpertScore:
        # A run of hours should not end at one dropped connection. In service nothing is asked again: there somebody
        # waits for the answer, and every attempt counts towards the budget.
        async for attempt in stamina.retry_context(
            on=_is_worth_another_try, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=20.0
        ):
            with attempt:
                return await self.expert.score(self.conversations[row])
        raise AssertionError("the last attempt returns or raises")

    async def _work(self) -> None:
        try:
            while (item := next(self.todo, None)) is not None:
                digest, row = item
                try:
                    score = await self._ask(row)
                except (ExpertError, InputError) as error:
                    self.failure = self.failure or (row, error)
                    return
                await self.journal.save(digest, score)
                self.scores[digest] = score.p_unsafe
                if score.tokens is not None:
                    self.tokens = (self.tokens or 0) + score.tokens
                self.progress.advance(self.bar)
        finally:
            # Whatever ended this worker, nothing new is worth asking.
            self.todo = iter(())
