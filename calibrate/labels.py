"""Expert scores of the rows: asked for a few at a time, saved one by one, never asked for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.data import Dataset
from calibrate.distributed.config import RayConfig
from calibrate.errand import Errand
from calibrate.journal import Journal
from ctd_guardrail.errors import CtdError, InputError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.config import ExpertConfig, OpenAIExpertConfig
from ctd_guardrail.experts.protocol import Expert

__all__ = ["ExpertScores", "Questions", "ask_expert", "score_with"]

# Enough to fill the device or the wire for experts that state no limit of their own.
_CONCURRENCY: Final = 32
_JOURNAL: Final = "expert.sqlite"

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """What the expert says about the rows.

    Attributes:
        p: P(unsafe), shape [rows].
        asked: Conversations that this run asked about.
        tokens: Tokens billed for them; None where the expert does not say.
        asked_again: Those of them that were under way when an earlier run was killed, and may be billed twice.
    """

    p: FloatArray
    asked: int = 0
    tokens: int | None = None
    asked_again: int = 0


@dataclass(frozen=True, slots=True)
class Questions:
    """What is known of the rows, and what is still to be asked.

    Attributes:
        digests: Of each row's conversation.
        first: The first row of each conversation.
        missing: Row of each conversation without a score.
        left_open: Those whose question was under way when a run was killed.
    """

    digests: Sequence[str]
    first: dict[str, int]
    missing: dict[str, int]
    left_open: set[str]

    @classmethod
    def of(cls, dataset: Dataset, rows: IntArray, journal: Journal) -> Questions:
        """Return the questions of some rows."""
        digests = [dataset.conversations[row].digest() for row in rows]
        known = journal.known(digests)
        first: dict[str, int] = {}
        for digest, row in zip(digests, rows.tolist(), strict=True):
            first.setdefault(digest, row)
        missing = {digest: row for digest, row in first.items() if digest not in known}
        return cls(digests, first, missing, journal.left_open(missing))

    def scores(self, journal: Journal, tokens: int | None) -> ExpertScores:
        """Return the scores of all rows, as they are on the disk."""
        scores = journal.known(self.digests)
        p = np.array([scores[digest] for digest in self.digests])
        return ExpertScores(p, len(self.missing), tokens, len(self.left_open))

    def error(self, dataset: Dataset, journal: Journal, digest: str, error: CtdError) -> CtdError:
        """Return what a failure at one question means for the run."""
        if isinstance(error, InputError):
            return dataset.error(self.first[digest], error.problem, hint=error.hint)
        saved = len(journal.known(self.digests))
        return type(error)(
            f"{error.problem}; {saved} of {len(self.first)} expert scores are saved in {journal.path}",
            hint=f"{error.hint + '. ' if error.hint else ''}Run the command again to go on from there",
        )


def score_with(
    section: ExpertConfig,
    dataset: Dataset,
    rows: IntArray,
    *,
    cache: Path,
    progress: Progress,
    run_on: RayConfig | None = None,
) -> tuple[str, ExpertScores]:
    """Build an expert, score the rows with it, and release it; return its identity and the scores.

    Args:
        section: The expert.
        dataset: The rows.
        rows: Indices of those to score.
        cache: Folder of the journal of saved scores.
        progress: Where a bar is drawn.
        run_on: The cluster whose actors ask; None: this process does.

    Raises:
        ExpertError, DataError: As :func:`ask_expert` does.
    """
    journal = cache / _JOURNAL
    concurrency = section.max_concurrency if isinstance(section, OpenAIExpertConfig) else _CONCURRENCY
    if run_on is not None:
        from calibrate.distributed.experts import ask_from_actors  # noqa: PLC0415  # ray

        return ask_from_actors(
            section, dataset, rows, journal=journal, concurrency=concurrency, progress=progress, run_on=run_on
        )
    expert = build_expert(section)

    async def ask() -> ExpertScores:
        try:
            return await ask_expert(dataset, rows, expert, journal=journal, concurrency=concurrency, progress=progress)
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
    with Journal(journal, expert.identity) as saved:
        questions = Questions.of(dataset, rows, saved)
        done = len(questions.first) - len(questions.missing)
        bar = progress.add_task("Expert scores", total=len(questions.first), completed=done)
        todo = ((digest, dataset.conversations[row]) for digest, row in questions.missing.items())
        errand = Errand(expert, saved, todo, lambda: progress.advance(bar))
        await errand.run(min(concurrency, len(questions.missing)))
        if errand.failure is not None:
            digest, error = errand.failure
            raise questions.error(dataset, saved, digest, error) from error
        return questions.scores(saved, errand.tokens)
