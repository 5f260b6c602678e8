"""A base model in service: activations, micro-batched on its device thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.activations.huggingface import HuggingFaceSource, pick_device
from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.source import ActivationSource
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.activations.tokens import tokenize
from ctd_guardrail.errors import OverlongError
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared
from ctd_guardrail.text.conversation import Conversation

__all__ = ["BatchedBaseModel", "Head", "load_base_model", "share_base_model"]

Head = Callable[[Ragged], torch.Tensor]
"""Reduces token activations, one segment a window, to one row a window, shape [windows, K].

A conversation that fits the base model's window has one; a longer one has several.
"""


@dataclass(frozen=True, slots=True)
class _Item:
    """One window. A long conversation shares the device like several short ones."""

    window: tuple[int, ...]
    head: Head
    rows: int
    """Number of rows that the head returns for it."""


@dataclass(frozen=True, slots=True)
class _Done:
    rows: torch.Tensor
    batch: tuple[float, float]
    """Start and end on the device thread, seconds of :func:`time.perf_counter`."""


class BatchedBaseModel:
    """Serves one :class:`ActivationSource` to any number of event loops, threads and policies.

    Args:
        source: Computes the activations.
        max_batch_tokens: Tokens of one batch on the device thread.
        max_queue: Largest number of waiting windows. Further windows are refused.
    """

    def __init__(self, source: ActivationSource, *, max_batch_tokens: int = 2048, max_queue: int = 1024) -> None:
        self._source = source
        # The device thread holds the source and not this object, so it ends when this object is collected.
        self._batcher: MicroBatcher[_Item, _Done] = MicroBatcher(
            partial(_time_batch, source),
            cost=lambda item: len(item.window),
            max_batch_cost=max_batch_tokens,
            max_queue=max_queue,
        )
        self._max_queue = max_queue
        weakref.finalize(self, self._batcher.close)

    @property
    def spec(self) -> ActivationSpec:
        """The requested model, layers and site."""
        return self._source.spec

    @property
    def fingerprint(self) -> Fingerprint:
        """Hashes of the loaded model."""
        return self._source.fingerprint

    @property
    def width(self) -> int:
        """Width of an activation: all layers side by side."""
        return self.fingerprint.hidden_size * len(self.spec.layers)

    async def run(self, conversation: Conversation, head: Head) -> Scored:
        """Return the head's rows for one conversation and their timing, without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationError: The chat template refused the conversation.
        """
        windows = await tokenize(self._source.tokenize, conversation)
        items, submitted = [_Item(window, head, 1) for window in windows], perf_counter()
        done = [await self._batcher(items[0])] if len(items) == 1 else await self._batcher.all(items)
        batches = {each.batch for each in done}
        return Scored(
            _to_numpy([each.rows for each in done]),
            queue_ms=1e3 * (min(batches)[0] - submitted),
            forward_ms=1e3 * sum(ended - started for started, ended in batches),
        )

    def run_many(self, conversations: Sequence[Conversation], head: Head) -> list[Float32Array]:
        """Return the head's rows for many conversations, each of shape [windows, K], blocking.

        They go through the same tokeniser, batcher and forward pass as :meth:`run`, shortest first.

        Raises:
            OverlongError: A conversation exceeds ``spec.max_tokens``.
            OverloadedError: Other callers have filled the queue.
            ActivationError: The chat template refused a conversation.
        """
        windows = [self._source.tokenize(conversation) for conversation in conversations]
        rows = self._submit_all([_Item(window, head, 1) for each in windows for window in each])
        return [_to_numpy([next(rows) for _ in each]) for each in windows]

    def is_overlong(self, conversation: Conversation) -> bool:
        """Return whether a conversation has more tokens than ``spec.max_tokens``.

        Raises:
            ActivationError: The chat template refused the conversation.
        """
        try:
            self._source.tokenize(conversation)
        except OverlongError:
            return True
        return False

    def tokens_of(self, conversations: Sequence[Conversation]) -> list[Ragged]:
        """Return the token activations of many conversations, one segment a window, on the CPU, blocking.

        Their data type is that of the forward pass. A long conversation takes hundreds of kilobytes.

        Raises:
            OverlongError: A conversation exceeds ``spec.max_tokens``.
            OverloadedError: Other callers have filled the queue.
            ActivationError: The chat template refused a conversation.
        """
        windows = [self._source.tokenize(conversation) for conversation in conversations]
        rows = self._submit_all([_Item(window, _values, len(window)) for each in windows for window in each])
        return [Ragged(torch.cat([next(rows) for _ in each]), tuple(map(len, each))) for each in windows]

    def _submit_all(self, items: Sequence[_Item]) -> Iterator[torch.Tensor]:
        order = sorted(range(len(items)), key=lambda i: len(items[i].window))
        results: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), self._max_queue // 2):
            part = order[start : start + self._max_queue // 2]
            futures = self._batcher.submit_all([items[i] for i in part])
            results.update((i, future.result().rows) for i, future in zip(part, futures, strict=True))
        return (results[i] for i in range(len(items)))

    def close(self) -> None:
        """Stop the device thread. Waiting conversations get an error."""
        self._batcher.close()


def _time_batch(source: ActivationSource, items: Sequence[_Item]) -> list[_Done]:
    started = perf_counter()
    results = _run_batch(source, items)
    batch = started, perf_counter()
    return [_Done(rows, batch) for rows in results]


def _run_batch(source: ActivationSource, items: Sequence[_Item]) -> list[torch.Tensor]:
    tokens = source.activations([item.window for item in items])
    if len(items) == 1:
        return [items[0].head(tokens).cpu()]
    heads = list(dict.fromkeys(item.head for item in items))
    if len(heads) == 1:
        return list(heads[0](tokens).cpu().split([item.rows for item in items]))
    # Policies with one base model share its forward pass; each head reads its own windows.
    windows = tokens.values.split(tokens.lengths)
    results: dict[int, torch.Tensor] = {}
    for head in heads:
        group = [i for i, item in enumerate(items) if item.head == head]
        ragged = Ragged(torch.cat([windows[i] for i in group]), tuple(tokens.lengths[i] for i in group))
        rows = head(ragged).cpu()
        results.update(zip(group, rows.split([items[i].rows for i in group]), strict=True))
    return [results[i] for i in range(len(items))]


def _to_numpy(parts: Sequence[torch.Tensor]) -> Float32Array:
    rows = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    array: Float32Array = (rows if rows.dtype is torch.float32 else rows.float()).numpy()
    return array


def _values(tokens: Ragged) -> torch.Tensor:
    return tokens.values


def load_base_model(spec: ActivationSpec, *, device: str = "auto", runtime: Runtime | None = None) -> BatchedBaseModel:
    """Return the base model of a spec. It is loaded and warmed up if the runtime does not hold it.

    All callers with the same spec and device share it. When the last of them drops it, the model is freed and its
    device thread ends.

    Args:
        spec: Model, layers and site.
        device: Torch device, several with commas between them, or ``auto``.
        runtime: Shares loaded models; None: the runtime of the process.

    Raises:
        ActivationError: The model cannot be found or loaded.
        ConfigError: A layer or the site does not exist in this model.
        DependencyError: ``package:NAME`` is not installed.
    """
    device = pick_device(device)
    return share_base_model((spec, device), lambda: HuggingFaceSource(spec, device=device), runtime)


def share_base_model(
    key: tuple[ActivationSpec, str], make: Callable[[], ActivationSource], runtime: Runtime | None
) -> BatchedBaseModel:
    """Return the base model of a key. Its source is made and warmed up if the runtime does not hold it.

    Args:
        key: The spec, and the place where the source computes.
        make: Makes the source.
        runtime: Shares loaded models; None: the runtime of the process.
    """
    models: Shared[tuple[ActivationSpec, str], BatchedBaseModel] = (runtime or Runtime.default()).shared("base models")
    return models.get(key, lambda: _load(make))


def _load(make: Callable[[], ActivationSource]) -> BatchedBaseModel:
    model = BatchedBaseModel(make())
    # The first pass is slow, because libraries choose their kernels. No user shall wait for it.
    model.tokens_of([Conversation.from_text("warm-up")])
    return model
