"""Activations from a pool of actors. Each actor holds the base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save

from calibrate.compute.cluster import map_rows
from calibrate.compute.wire import from_text, to_error, to_failure, to_text
from calibrate.compute.workers import RefusedError, Tensors, Work, run_work
from calibrate.config.cluster import RayConfig
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.python import open_base_model
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.errors import ActivationError, CtdError
from ctd_guardrail.runtime.factory import Factory
from ctd_guardrail.text.conversation import Conversation

__all__ = ["RayWorkers"]

Batch = dict[str, NDArray[Any]]


class RayWorkers:
    """Actors on a cluster, as :class:`~calibrate.compute.workers.Workers`. Their results come back as safetensors.

    Args:
        config: The cluster.
        base_model: The base model in this process. The actors must load the same one.
        device: Device of the actors' base models, ``auto`` for the GPU that Ray gives them.
        source: Python code that computes activations, on every machine; None: there is none.
    """

    def __init__(
        self, config: RayConfig, base_model: BatchedBaseModel, *, device: str, source: Factory | None = None
    ) -> None:
        self._config = config
        self._base_model = base_model
        self._device = device
        self._source = source

    def map(self, work: Work, chunks: Sequence[Sequence[Conversation]]) -> Iterator[tuple[int, Tensors]]:
        """Yield the number of each chunk and its tensors, as they arrive, in any order.

        Raises:
            RefusedError: A conversation cannot be read.
            ActivationError: The base model failed, or an actor has loaded another one.
        """
        rows = [{"chunk": number, "conversations": to_text(chunk)} for number, chunk in enumerate(chunks)]
        arguments = (self._base_model.spec, self._base_model.fingerprint, self._device, self._source, work)
        for row in map_rows(self._config, _Worker, arguments, rows):
            if not row["failure"]:
                yield row["chunk"], load(row["content"])
                continue
            error = to_error(row["failure"])
            if row["place"] < 0:
                raise error
            raise RefusedError(row["chunk"], row["place"], error.problem, error.hint)


class _Worker:
    """Runs the work in another process.

    Errors are returned, not raised. Ray would retry them, and print errors that it cannot transfer.
    """

    def __init__(
        self, spec: ActivationSpec, fingerprint: Fingerprint, device: str, source: Factory | None, work: Work
    ) -> None:
        self._work = work
        self._problem: CtdError | None = None
        try:
            self._base_model = open_base_model(spec, source, device=device)
        except CtdError as error:
            self._problem = error
            return
        if self._base_model.fingerprint != fingerprint:
            self._problem = ActivationError(
                f"an actor has loaded another {spec.model!r} than the machine that started the run",
                hint="Give all machines the same files, or name a revision under base.revision",
            )

    def __call__(self, batch: Batch) -> Batch:
        """Return number and tensors of the chunk, or the error and the place of its conversation (-1: none)."""
        (number,) = batch["chunk"].tolist()
        content, failure, place = b"", "", -1
        try:
            if self._problem is not None:
                raise self._problem
            content = save(run_work(self._work, self._base_model, number, from_text(batch["conversations"][0])))
        except RefusedError as error:
            failure, place = to_failure(ActivationError(error.problem, hint=error.hint)), error.place
        except CtdError as error:
            failure = to_failure(error)
        columns = {"chunk": number, "content": content, "failure": failure, "place": place}
        return {name: _column(value) for name, value in columns.items()}


def _column(value: object) -> NDArray[Any]:
    column = np.empty(1, dtype=object)
    column[0] = value
    return column
