"""Scores from a base model that vLLM serves.

Tokenising and reducing run in this process, as for a base model in process; the engine computes the projections of the
tokens. It must prove that it serves the export of the policy: at the start, every minute, and after each lost
connection.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import torch
from transformers import AutoTokenizer

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.activations.huggingface import quiet_transformers
from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.activations.tokens import ConversationTokenizer, tokenize
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.errors import ActivationError, ActivationUnavailableError, OverloadedError
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.match import check_fingerprint
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.serving.engine_client import EngineClient
from ctd_guardrail.serving.pooling import answer_size, read_answer, request_body
from ctd_guardrail.serving.record import ExportRecord, check_projection, check_record, read_record
from ctd_guardrail.serving.verification import LARGEST_LIST, check_columns, check_models, tolerance
from ctd_guardrail.text.conversation import Conversation

__all__ = ["VllmReader", "open_scorer"]

log = logging.getLogger(__name__)

_VERIFIED_FOR_S: Final = 60.0
# Below this many tokens a thread hop costs more than reducing on the spot.
_INLINE_TOKENS: Final = 4096


def open_scorer(
    config: VllmSourceConfig, manifest: Manifest, probes: Probes, *, folder: Path, runtime: Runtime | None = None
) -> VllmReader:
    """Connect to the engine that serves the base model of a policy. Blocks while the engine is verified.

    An engine that cannot be reached is no error here: inputs fail until it can be reached and verified.

    Args:
        config: The ``source`` section.
        manifest: The policy.
        probes: The policy's.
        folder: Folder that relative paths start from.
        runtime: Runs the requests; None: the runtime of the process.

    Raises:
        PolicyFormatError: The export's record cannot be read.
        PolicyMismatchError: The export, its tokenizer, or what the engine serves is not the policy's.
        ActivationError: The export has no tokenizer, or the engine does not take requests.
        ConfigError: The environment variable of the key is not set.
    """
    export = folder / config.export
    record = read_record(export)
    check_record(record, manifest, folder=export)
    check_projection(record, probes.projection, folder=export)
    reader = VllmReader(config, record, _open_tokenizer(export, manifest), spec=manifest.activations, runtime=runtime)
    try:
        reader.verify()
    except (ActivationUnavailableError, OverloadedError) as error:
        log.warning("the engine of the base model is not there yet (%s): inputs fail until it is", error.problem)
    return reader


def _open_tokenizer(export: Path, manifest: Manifest) -> ConversationTokenizer:
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(export)
        except (OSError, ValueError) as error:
            raise ActivationError(
                f"{export} holds no tokenizer ({type(error).__name__})",
                hint="Copy all files of the export but *.safetensors",
            ) from error
    fingerprint = manifest.fingerprint
    opened = ConversationTokenizer(tokenizer, window=fingerprint.window, max_tokens=manifest.activations.max_tokens)
    found = {"tokenizer_sha256": opened.tokenizer_sha256, "template_sha256": opened.template_sha256}
    check_fingerprint(manifest, fingerprint.model_copy(update=found))
    return opened


class VllmReader:
    """A :class:`~ctd_guardrail.activations.scorer.Scorer` on vLLM's ``/pooling`` route.

    Args:
        config: The engine.
        record: What it must serve.
        tokenizer: The base model's.
        spec: Where the policy reads activations.
        runtime: Runs the requests; None: the runtime of the process.

    Raises:
        ConfigError: The environment variable of the key is not set, or does not hold a key.
    """

    def __init__(
        self,
        config: VllmSourceConfig,
        record: ExportRecord,
        tokenizer: ConversationTokenizer,
        *,
        spec: ActivationSpec,
        runtime: Runtime | None = None,
    ) -> None:
        self._config = config
        self._record = record
        self._tokenizer = tokenizer
        self._spec = spec
        self._io = (runtime or Runtime.default()).io
        self._client = EngineClient(config, self._io)
        self._verifying: asyncio.Task[None] | None = None
        # On the clock of the I/O thread's loop.
        self._verified_until: float | None = None

    @property
    def spec(self) -> ActivationSpec:
        """What is read."""
        return self._spec

    async def run(self, conversation: Conversation, head: Probes) -> Scored:
        """Return (p, d) of each window and what they took, without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationUnavailableError: The engine could not be reached, failed, or did not answer in time.
            ActivationError: The engine's answer is not what was asked for.
            PolicyMismatchError: The engine serves something else by now.
        """
        windows = await tokenize(self._tokenizer, conversation)
        submitted = perf_counter()
        columns, started = await asyncio.wrap_future(self._io.submit(self._read(windows)))
        ended = perf_counter()
        if len(columns) <= _INLINE_TOKENS:
            rows = _reduce(head, columns, windows)
        else:
            rows = await asyncio.to_thread(_reduce, head, columns, windows)
        return Scored(rows, queue_ms=1e3 * (started - submitted), forward_ms=1e3 * (ended - started))

    def verify(self) -> None:
        """Verify that the engine serves the export; blocking.

        Raises:
            OverloadedError, ActivationUnavailableError, ActivationError, PolicyMismatchError: As :meth:`run` does.
        """
        self._io.submit(self._be_sure()).result()

    async def _read(self, windows: Windows) -> tuple[Float32Array, float]:
        """Return the columns of all tokens, and when the request got its slot. Runs on the I/O thread."""
        deadline = self._deadline()
        try:
            async with asyncio.timeout_at(deadline):
                await self._be_sure()
        except TimeoutError:
            raise ActivationUnavailableError(
                "the engine was not verified in time", hint="Raise source.timeout_s or add replicas"
            ) from None
        try:
            return await self._columns(windows, deadline)
        except ActivationUnavailableError as error:
            if error.has_lost_connection:
                # Another server may answer at this address now.
                self._verified_until = None
            raise

    async def _columns(self, windows: Windows, deadline: float) -> tuple[Float32Array, float]:
        tokens, columns = sum(map(len, windows)), self._record.columns
        body, started = await self._client.call(
            "/pooling",
            request_body(self._config.model, windows),
            limit=answer_size(tokens, columns),
            deadline=deadline,
        )
        return read_answer(body, tokens, columns), started

    async def _be_sure(self) -> None:
        """Wait until the engine is verified. If it was verified before, renew that in the background."""
        if self._verified_until is not None and asyncio.get_running_loop().time() < self._verified_until:
            return
        if self._verifying is None:
            # Shared by all waiting requests. It continues if the deadline of one passes.
            self._verifying = asyncio.create_task(self._prove())
            self._verifying.add_done_callback(self._proven)
        if self._verified_until is None:
            await asyncio.shield(self._verifying)

    async def _prove(self) -> None:
        deadline = self._deadline()
        body, _ = await self._client.call("/v1/models", limit=LARGEST_LIST, deadline=deadline)
        check_models(body, model=self._config.model, window=self._tokenizer.window)
        checks = self._record.checks
        columns, _ = await self._columns(tuple(check.token_ids for check in checks), deadline)
        served = np.split(columns, np.cumsum([len(check.token_ids) for check in checks])[:-1])
        limit = tolerance(self._spec.dtype)
        check_columns(served, [check.columns() for check in checks], limit=limit)

    def _proven(self, task: asyncio.Task[None]) -> None:
        self._verifying = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self._verified_until = asyncio.get_running_loop().time() + _VERIFIED_FOR_S
        elif self._verified_until is not None and not _is_busy(error):
            log.warning("the engine of the base model could not prove itself again (%s)", type(error).__name__)
            self._verified_until = None

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._config.timeout_s


def _is_busy(error: BaseException) -> bool:
    """Return whether the error leaves an engine that was verified before trustworthy for a while."""
    return isinstance(error, OverloadedError) or (
        isinstance(error, ActivationUnavailableError) and not error.has_lost_connection
    )


@torch.inference_mode()
def _reduce(head: Probes, columns: Float32Array, windows: Windows) -> Float32Array:
    rows: Float32Array = head.from_columns(torch.from_numpy(columns), tuple(map(len, windows))).numpy()
    return rows
