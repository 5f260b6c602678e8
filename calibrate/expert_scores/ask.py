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

from calibrate.config.cluster import RayConfig
from calibrate.config.expert import ExpertSection
from calibrate.expert_scores.refused import Limits, RefusedRow, RunBook, allowed_rows, repeated, too_many
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.expert_scores.worker_pool import WorkerPool
from calibrate.rows.data import Dataset
from ctd_guardrail.config.experts import OpenAIExpertConfig, RailExpertConfig
from ctd_guardrail.errors import CtdError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import Expert

__all__ = ["ExpertScores", "Questions", "ask_expert", "score_with"]

# Enough to fill the device or the wire for experts that state no limit of their own.
_CONCURRENCY: Final = 32
_JOURNAL: Final = "expert.sqlite"
# Names of so many refused rows are printed.
_PRINTED: Final = 10

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """What the expert says about the rows.

    Attributes:
        p: P(unsafe), shape [rows]; NaN where the expert refused the row.
        asked: Conversations that this run asked about.
        tokens: Tokens billed for scores; None where the expert does not say.
        asked_again: Those of them that were under way when an earlier run was killed, and may be billed twice.
        refused: The rows without a score, ascending.
    """

    p: FloatArray
    asked: int = 0
    tokens: int | None = None
    asked_again: int = 0
    refused: tuple[RefusedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Questions:
    """What is known of the rows, and what is still to be asked.

    Attributes:
        dataset: The rows.
        rows: Indices of those to score.
        digests: Of each row's conversation.
        first: The first row of each conversation.
        missing: Row of each conversation that has neither a score nor a refusal.
        left_open: Those whose question was under way when a run was killed.
        allowed: Rows that the expert may refuse.
    """

    dataset: Dataset
    rows: IntArray
    digests: Sequence[str]
    first: dict[str, int]
    missing: dict[str, int]
    left_open: set[str]
    allowed: int

    @classmethod
    def of(
        cls, dataset: Dataset, rows: IntArray, journal: ScoreLog, *, max_refused_rows: float, ask_refused_again: bool
    ) -> Questions:
        """Return the questions of some rows.

        Raises:
            DataError: The expert has refused too many of them already.
        """
        digests = [dataset.conversations[row].digest() for row in rows]
        if ask_refused_again:
            journal.forget_refusals(digests)
        settled = journal.known(digests).keys() | journal.refused(digests).keys()
        first: dict[str, int] = {}
        for digest, row in zip(digests, rows.tolist(), strict=True):
            first.setdefault(digest, row)
        missing = {digest: row for digest, row in first.items() if digest not in settled}
        allowed = allowed_rows(max_refused_rows, rows.size)
        questions = cls(dataset, rows, digests, first, missing, journal.left_open(missing), allowed)
        questions.refused(journal)
        return questions

    @property
    def settled(self) -> int:
        """Number of conversations that need no question."""
        return len(self.first) - len(self.missing)

    def limits(self, journal: ScoreLog) -> Limits:
        """Return how many rows the expert may still refuse."""
        return Limits(self.allowed - len(self.refused(journal)), repeated(self.digests))

    def refused(self, journal: ScoreLog) -> tuple[RefusedRow, ...]:
        """Return the rows that the expert has refused, ascending.

        Raises:
            DataError: There are more of them than are allowed.
        """
        found = journal.refused(self.digests)
        places = sorted(
            (row, digest) for row, digest in zip(self.rows.tolist(), self.digests, strict=True) if digest in found
        )
        refused = tuple(RefusedRow.of(self.dataset, row, found[digest]) for row, digest in places)
        if len(refused) > self.allowed:
            raise too_many(self.dataset, refused, allowed=self.allowed, rows=self.rows.size)
        return refused

    def scores(self, journal: ScoreLog, tokens: int | None) -> ExpertScores:
        """Return the scores of all rows, as they are on the disk.

        Raises:
            DataError: The expert has refused too many rows.
        """
        refused = self.refused(journal)
        scores = journal.known(self.digests)
        p = np.array([scores.get(digest, np.nan) for digest in self.digests])
        return ExpertScores(p, len(self.missing), tokens, len(self.left_open), refused)

    def error(self, journal: ScoreLog, error: CtdError) -> CtdError:
        """Return what a failure of the expert means for the run."""
        saved = len(journal.known(self.digests))
        return type(error)(
            f"{error.problem}; {saved} of {len(self.first)} expert scores are saved in {journal.path}",
            hint=f"{error.hint + '. ' if error.hint else ''}Run the command again to go on from there",
        )


def score_with(
    section: ExpertSection,
    dataset: Dataset,
    rows: IntArray,
    *,
    cache: Path,
    progress: Progress,
    run_on: RayConfig | None = None,
    ask_refused_again: bool = False,
) -> tuple[str, ExpertScores]:
    """Build an expert, score the rows with it, and release it; return its identity and the scores.

    Args:
        section: The expert.
        dataset: The rows.
        rows: Indices of those to score.
        cache: Folder of the journal of saved scores.
        progress: Where a bar is drawn.
        run_on: The cluster whose actors ask; None: this process does.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError, DataError: As :func:`ask_expert` does.
    """
    journal = cache / _JOURNAL
    concurrency = _CONCURRENCY
    if isinstance(section, OpenAIExpertConfig):
        concurrency = section.max_concurrency
    elif isinstance(section, RailExpertConfig):
        # Not more than the expert takes at once: a wait for a free slot would count towards the deadline.
        concurrency = min(_CONCURRENCY, section.max_concurrency)
    if run_on is not None:
        from calibrate.expert_scores.ray import ask_from_actors  # noqa: PLC0415  # ray

        identity, scores = ask_from_actors(
            section,
            dataset,
            rows,
            journal=journal,
            concurrency=concurrency,
            progress=progress,
            run_on=run_on,
            ask_refused_again=ask_refused_again,
        )
    else:
        expert = build_expert(section)

        async def ask() -> ExpertScores:
            try:
                return await ask_expert(
                    dataset,
                    rows,
                    expert,
                    journal=journal,
                    concurrency=concurrency,
                    progress=progress,
                    max_refused_rows=section.max_refused_rows,
                    ask_refused_again=ask_refused_again,
                )
            finally:
                await expert.aclose()

        identity, scores = expert.identity, asyncio.run(ask())
    _print_refused(scores.refused, progress)
    return identity, scores


async def ask_expert(
    dataset: Dataset,
    rows: IntArray,
    expert: Expert,
    *,
    journal: Path,
    concurrency: int,
    progress: Progress,
    max_refused_rows: float = 0,
    ask_refused_again: bool = False,
) -> ExpertScores:
    """Score rows, taking from the journal what an earlier run has paid for.

    What may pass (a timeout, HTTP 429 or 503, a dropped connection) is tried again a few times, ever more slowly. At
    the first failure that stays no further question is asked; those under way are waited for and saved. A row that
    the expert refuses is written down, and the next one is asked about.

    Args:
        dataset: The rows.
        rows: Indices of those to score.
        expert: Whom to ask.
        journal: File of saved scores.
        concurrency: Questions that may be under way at once.
        progress: Where a bar is drawn.
        max_refused_rows: Rows that the expert may refuse: a whole number, or a share of the rows below 1.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError: The expert failed; the message says how many scores are saved.
        DataError: The expert refused more rows than it may; the first ones are named. Or the journal cannot be read.
    """
    with ScoreLog(journal, expert.identity) as saved:
        questions = Questions.of(
            dataset, rows, saved, max_refused_rows=max_refused_rows, ask_refused_again=ask_refused_again
        )
        bar = progress.add_task("Expert scores", total=len(questions.first), completed=questions.settled)
        todo = ((digest, dataset.conversations[row]) for digest, row in questions.missing.items())
        book = RunBook(saved, questions.limits(saved))
        errand = WorkerPool(expert, book, todo, lambda: progress.advance(bar))
        await errand.run(min(concurrency, len(questions.missing)))
        if errand.failure is not None:
            raise questions.error(saved, errand.failure) from errand.failure
        return questions.scores(saved, errand.tokens)


def _print_refused(refused: Sequence[RefusedRow], progress: Progress) -> None:
    for each in refused[:_PRINTED]:
        text = f"{each}: the expert gives no score for it, so it is left out ({each.refusal.problem})"
        progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
    if len(refused) > _PRINTED:
        progress.console.print(f"and {len(refused) - _PRINTED} more rows", highlight=False)
