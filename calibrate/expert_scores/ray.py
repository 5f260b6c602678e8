"""Expert scores from a pool of actors, with one actor that writes all of them down.

Ray starts an actor anew that was lost, and gives it the same conversations again. The journal is asked before every
question, so only those that were under way on the lost actor are asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.compute.cluster import map_rows
from calibrate.compute.wire import from_text, to_error, to_failure, to_text
from calibrate.config.cluster import RayConfig
from calibrate.config.expert import ExpertSection
from calibrate.expert_scores.ask import ExpertScores, Questions
from calibrate.expert_scores.refused import Limits, RunBook
from calibrate.expert_scores.score_log import Refusal, ScoreLog
from calibrate.expert_scores.worker_pool import WorkerPool
from calibrate.rows.data import Dataset
from ctd_guardrail.errors import CtdError, ExpertUnavailableError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import ExpertScore

__all__ = ["ask_from_actors"]

# Questions of one lot for each that may be under way: the last ones of a lot leave slots empty.
_ROUNDS: Final = 8

Batch = dict[str, NDArray[Any]]
IntArray = NDArray[np.int64]


def ask_from_actors(
    section: ExpertSection,
    dataset: Dataset,
    rows: IntArray,
    *,
    journal: Path,
    concurrency: int,
    progress: Progress,
    run_on: RayConfig,
    ask_refused_again: bool = False,
) -> tuple[str, ExpertScores]:
    """Score rows as :func:`~calibrate.expert_scores.ask.ask_expert` does; return the expert's identity and the scores.

    Args:
        section: The expert. Its key is read from the environment of the machines that ask.
        dataset: The rows.
        rows: Indices of those to score.
        journal: File of saved scores, on this machine.
        concurrency: Questions that may be under way at once, on all actors together.
        progress: Where a bar is drawn.
        run_on: The cluster.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError: The expert failed; the message says how many scores are saved.
        DataError: The expert refused more rows than it may; the first ones are named. Or the journal cannot be read.
        ConfigError: The expert cannot be built.
    """
    identity = _identity(section, run_on)
    with ScoreLog(journal, identity) as saved:
        questions = Questions.of(
            dataset, rows, saved, max_refused_rows=section.max_refused_rows, ask_refused_again=ask_refused_again
        )
        bar = progress.add_task("Expert scores", total=len(questions.first), completed=questions.settled)
        each = max(1, concurrency // run_on.actors)
        actors = min(run_on.actors, concurrency)
        lots = [
            {
                "digests": " ".join(digests),
                "conversations": to_text([dataset.conversations[questions.missing[digest]] for digest in digests]),
            }
            for digests in _lots(questions.missing, _ROUNDS * each)
        ]
        keeper = _start_keeper(journal, identity, questions.limits(saved)) if lots else None
        failure: CtdError | None = None
        tokens: int | None = None
        pool = run_on.model_copy(update={"actors": actors})
        for row in map_rows(pool, _Asker, (section, identity, keeper, each), lots):
            progress.advance(bar, row["saved"])
            if row["tokens"] >= 0:
                tokens = (tokens or 0) + row["tokens"]
            if row["failure"] and failure is None:
                failure = to_error(row["failure"])
        if failure is not None:
            raise questions.error(saved, failure)
        return identity, questions.scores(saved, tokens)


def _lots(digests: Iterable[str], size: int) -> Iterator[list[str]]:
    everything = list(digests)
    for start in range(0, len(everything), size):
        yield everything[start : start + size]


def _identity(section: ExpertSection, run_on: RayConfig) -> str:
    """Return the expert's identity, asked on the cluster: this machine may be too small to load a local one."""
    import ray  # noqa: PLC0415  # an extra

    def identify() -> tuple[str, str]:
        try:
            expert = build_expert(section)
        except CtdError as error:
            return "", to_failure(error)
        asyncio.run(expert.aclose())
        return expert.identity, ""

    task = ray.remote(identify).options(num_cpus=run_on.cpus_per_actor, num_gpus=run_on.gpus_per_actor, max_retries=0)
    identity, failure = ray.get(task.remote())
    if failure:
        raise to_error(failure)
    return identity


def _start_keeper(journal: Path, identity: str, limits: Limits) -> Any:
    """Start the actor that writes the journal, on this machine: the file is here."""
    import ray  # noqa: PLC0415  # an extra
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Keeper).options(num_cpus=0, scheduling_strategy=here).remote(journal, identity, limits)


class _Keeper:
    """Holds the book of the run for all actors."""

    def __init__(self, journal: Path, identity: str, limits: Limits) -> None:
        self._book = RunBook(ScoreLog(journal, identity), limits)

    async def claim(self, conversation: str) -> bool:
        return await self._book.claim(conversation)

    async def release(self, conversation: str) -> None:
        await self._book.release(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        await self._book.save(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        await self._book.refuse(conversation, refusal)


class _RemoteBook:
    """The way to the keeper."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def claim(self, conversation: str) -> bool:
        return bool(await self._keeper.claim.remote(conversation))

    async def release(self, conversation: str) -> None:
        await self._keeper.release.remote(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        await self._keeper.save.remote(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        await self._keeper.refuse.remote(conversation, refusal)


class _Asker:
    """The plain loop's own errand, in another process."""

    def __init__(self, section: ExpertSection, identity: str, keeper: Any, concurrency: int) -> None:
        self._book = _RemoteBook(keeper)
        self._concurrency = concurrency
        self._expert = build_expert(section)
        self._is_another = self._expert.identity != identity

    def __call__(self, batch: Batch) -> Batch:
        """Return how many answers of a lot were saved, the tokens billed (-1: unknown), and how the expert failed."""
        (digests,), (conversations,) = batch["digests"], batch["conversations"]
        saved = 0

        def count() -> None:
            nonlocal saved
            saved += 1

        todo = zip(digests.split(), from_text(conversations), strict=True)
        errand = WorkerPool(self._expert, self._book, todo, count)
        if self._is_another:
            errand.failure = ExpertUnavailableError(
                "an actor has built another expert than the first one", hint="Give all machines the same files"
            )
        else:
            asyncio.run(errand.run(self._concurrency))
        failure = "" if errand.failure is None else to_failure(errand.failure)
        tokens = -1 if errand.tokens is None else errand.tokens
        columns = {"saved": saved, "tokens": tokens, "failure": failure}
        return {name: np.array([value]) for name, value in columns.items()}
