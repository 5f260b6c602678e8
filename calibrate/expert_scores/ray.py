"""Expert scores from a pool of actors, with one actor that writes the score log.

Ray restarts a lost actor with the same conversations. Every actor asks the log before a request. So only the requests
that were in flight on the lost actor are sent again.
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
from calibrate.expert_scores.ask import ExpertScores, ScoreRequests
from calibrate.expert_scores.refused import LimitedLog, Limits
from calibrate.expert_scores.score_log import Refusal, ScoreLog
from calibrate.expert_scores.worker_pool import WorkerPool
from calibrate.rows.data import Dataset
from ctd_guardrail.errors import CtdError, ExpertUnavailableError
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import ExpertScore

__all__ = ["ask_from_actors"]

# Requests in a batch for each request in flight. With more, the end of a batch leaves fewer slots idle.
_ROUNDS: Final = 8

Batch = dict[str, NDArray[Any]]
IntArray = NDArray[np.int64]


def ask_from_actors(
    section: ExpertSection,
    dataset: Dataset,
    rows: IntArray,
    *,
    log: Path,
    concurrency: int,
    progress: Progress,
    run_on: RayConfig,
    ask_refused_again: bool = False,
) -> tuple[str, ExpertScores]:
    """Score rows as :func:`~calibrate.expert_scores.ask.ask_expert` does; return the expert's identity and the scores.

    Args:
        section: The expert. Its key is read from the environment of the actors' machines.
        dataset: The rows.
        rows: Indices of the rows to score.
        log: File of the score log, on this machine.
        concurrency: Largest number of requests in flight, on all actors together.
        progress: Progress bars.
        run_on: The cluster.
        ask_refused_again: Whether rows that the expert refused in an earlier run are asked about again.

    Raises:
        ExpertError: The expert failed; the message states the number of saved scores.
        DataError: The expert refused too many rows, and the first ones are named. Or the log cannot be read.
        ConfigError: The expert cannot be built.
    """
    identity = _identity(section, run_on)
    with ScoreLog(log, identity) as saved:
        requests = ScoreRequests.of(
            dataset, rows, saved, max_refused_rows=section.max_refused_rows, ask_refused_again=ask_refused_again
        )
        bar = progress.add_task("Expert scores", total=len(requests.first), completed=requests.settled)
        each = max(1, concurrency // run_on.actors)
        actors = min(run_on.actors, concurrency)
        lots = [
            {
                "digests": " ".join(digests),
                "conversations": to_text([dataset.conversations[requests.missing[digest]] for digest in digests]),
            }
            for digests in _batches(requests.missing, _ROUNDS * each)
        ]
        log_actor = _start_log_actor(log, identity, requests.limits(saved)) if lots else None
        failure: CtdError | None = None
        tokens: int | None = None
        pool = run_on.model_copy(update={"actors": actors})
        for row in map_rows(pool, _ScoringActor, (section, identity, log_actor, each), lots):
            progress.advance(bar, row["saved"])
            if row["tokens"] >= 0:
                tokens = (tokens or 0) + row["tokens"]
            if row["failure"] and failure is None:
                failure = to_error(row["failure"])
        if failure is not None:
            raise requests.error(saved, failure)
        return identity, requests.scores(saved, tokens)


def _batches(digests: Iterable[str], size: int) -> Iterator[list[str]]:
    everything = list(digests)
    for start in range(0, len(everything), size):
        yield everything[start : start + size]


def _identity(section: ExpertSection, run_on: RayConfig) -> str:
    """Return the expert's identity. A task on the cluster builds the expert: this machine may be too small for it."""
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


def _start_log_actor(log: Path, identity: str, limits: Limits) -> Any:
    """Start the actor that writes the score log, on the machine of the file."""
    import ray  # noqa: PLC0415  # an extra
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_LogActor).options(num_cpus=0, scheduling_strategy=here).remote(log, identity, limits)


class _LogActor:
    """Holds the score log of the run for all actors."""

    def __init__(self, log: Path, identity: str, limits: Limits) -> None:
        self._log = LimitedLog(ScoreLog(log, identity), limits)

    async def claim(self, conversation: str) -> bool:
        return await self._log.claim(conversation)

    async def release(self, conversation: str) -> None:
        await self._log.release(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        await self._log.save(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        await self._log.refuse(conversation, refusal)


class _RemoteLog:
    """A handle of the actor that holds the score log."""

    def __init__(self, log_actor: Any) -> None:
        self._log_actor = log_actor

    async def claim(self, conversation: str) -> bool:
        return bool(await self._log_actor.claim.remote(conversation))

    async def release(self, conversation: str) -> None:
        await self._log_actor.release.remote(conversation)

    async def save(self, conversation: str, score: ExpertScore) -> None:
        await self._log_actor.save.remote(conversation, score)

    async def refuse(self, conversation: str, refusal: Refusal) -> None:
        await self._log_actor.refuse.remote(conversation, refusal)


class _ScoringActor:
    """Runs a worker pool in another process."""

    def __init__(self, section: ExpertSection, identity: str, log_actor: Any, concurrency: int) -> None:
        self._log = _RemoteLog(log_actor)
        self._concurrency = concurrency
        self._expert = build_expert(section)
        self._is_another = self._expert.identity != identity

    def __call__(self, batch: Batch) -> Batch:
        """Return the number of saved answers of a batch, the billed tokens (-1: unknown), and the expert's failure."""
        (digests,), (conversations,) = batch["digests"], batch["conversations"]
        saved = 0

        def count() -> None:
            nonlocal saved
            saved += 1

        todo = zip(digests.split(), from_text(conversations), strict=True)
        pool = WorkerPool(self._expert, self._log, todo, count)
        if self._is_another:
            pool.failure = ExpertUnavailableError(
                "an actor has built another expert than the first one", hint="Give all machines the same files"
            )
        else:
            asyncio.run(pool.run(self._concurrency))
        failure = "" if pool.failure is None else to_failure(pool.failure)
        tokens = -1 if pool.tokens is None else pool.tokens
        columns = {"saved": saved, "tokens": tokens, "failure": failure}
        return {name: np.array([value]) for name, value in columns.items()}
