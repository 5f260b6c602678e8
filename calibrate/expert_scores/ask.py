"""Expert scores of the rows. Each is saved at once and never requested twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.progress import Progress

from calibrate.config.cluster import RayConfig
from calibrate.config.expert import ExpertSection
from calibrate.expert_scores.refused import LimitedLog, RefusedRow
from calibrate.expert_scores.requests import ExpertScores, ScoreRequests
from calibrate.expert_scores.score_log import ScoreLog
from calibrate.expert_scores.worker_pool import WorkerPool
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.config.experts import OpenAIExpertConfig, PythonExpertConfig, RailExpertConfig
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import Expert

__all__ = ["ask_expert", "score_with"]

# Requests in flight for experts without a limit of their own: enough to keep a device or a connection busy.
_CONCURRENCY: Final = 32
_LOG_FILE: Final = "expert.sqlite"
# Number of refused rows that are printed by name.
_PRINTED: Final = 10


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
        rows: Indices of the rows to score.
        cache: Folder of the score log.
        progress: Progress bars.
        run_on: The cluster whose actors ask; None: this process asks.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError, DataError: As :func:`ask_expert` does.
    """
    log = cache / _LOG_FILE
    concurrency = _CONCURRENCY
    if isinstance(section, OpenAIExpertConfig):
        concurrency = section.max_concurrency
    elif isinstance(section, RailExpertConfig | PythonExpertConfig):
        # Not more than the expert takes at once: a wait for a free slot would count towards the deadline.
        concurrency = min(_CONCURRENCY, section.max_concurrency)
    if run_on is not None:
        from calibrate.expert_scores.ray import ask_from_actors  # noqa: PLC0415  # ray

        identity, scores = ask_from_actors(
            section,
            dataset,
            rows,
            log=log,
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
                    log=log,
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
    log: Path,
    concurrency: int,
    progress: Progress,
    max_refused_rows: float = 0,
    ask_refused_again: bool = False,
) -> ExpertScores:
    """Score rows. Scores in the log are not requested again.

    Transient failures (a timeout, HTTP 429 or 503, a dropped connection) are retried a few times, with growing delays.
    A ``Retry-After`` of up to two minutes is honoured. After the first permanent failure no further
    request is sent, and requests in flight are completed and saved. A row that the expert refuses is saved as refused.

    Args:
        dataset: The rows.
        rows: Indices of the rows to score.
        expert: The expert.
        log: File of the score log.
        concurrency: Largest number of requests in flight.
        progress: Progress bars.
        max_refused_rows: Rows that the expert may refuse: a whole number, or a share of the rows below 1.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError: The expert failed; the message states the number of saved scores.
        DataError: The expert refused too many rows, and the first ones are named. Or the log cannot be read.
    """
    with ScoreLog(log, expert.identity) as saved:
        requests = ScoreRequests.of(
            dataset, rows, saved, max_refused_rows=max_refused_rows, ask_refused_again=ask_refused_again
        )
        bar = progress.add_task("Expert scores", total=len(requests.first), completed=requests.settled)
        todo = ((digest, dataset.conversations[row]) for digest, row in requests.missing.items())
        pool = WorkerPool(expert, LimitedLog(saved, requests.limits(saved)), todo, lambda: progress.advance(bar))
        await pool.run(min(concurrency, len(requests.missing)))
        if pool.failure is not None:
            raise requests.error(saved, pool.failure) from pool.failure
        return requests.scores(saved, pool.tokens)


def _print_refused(refused: Sequence[RefusedRow], progress: Progress) -> None:
    for each in refused[:_PRINTED]:
        text = f"{each}: the expert gives no score for it, so it is left out ({each.refusal.problem})"
        progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
    if len(refused) > _PRINTED:
        progress.console.print(f"and {len(refused) - _PRINTED} more rows", highlight=False)
