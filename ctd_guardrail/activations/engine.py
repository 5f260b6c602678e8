"""A base model in service: activations, micro-batched on its device thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.activations.huggingface import HuggingFaceSource, pick_device
from ctd_guardrail.activations.ragged import Ragged
from ctd_guardrail.activations.reading import Reading
from ctd_guardrail.activations.source import ActivationSource, Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.activations.tokens import tokenize
from ctd_guardrail.conversation import Conversation

__all__ = ["ActivationEngine", "Head", "get_engine"]

Head = Callable[[Ragged], torch.Tensor]
"""Reduces token activations, one segment a window, to one row a window, shape [windows, K].

A conversation that fits the base model's window has one; a longer one has several.
"""


@dataclass(frozen=True, slots=True)
class _Item:
    windows: Windows
    head: Head
    tokens: int
    rows: int
    """Rows that the head returns for these windows."""


@dataclass(frozen=True, slots=True)
class _Done:
    rows: torch.Tensor
    started: float
    ended: float
    """When the batch started and ended on the device thread, seconds of :func:`time.perf_counter`."""


class ActivationEngine:
    """Serves one :class:`ActivationSource` to any number of event loops, threads and policies.

    Args:
        source: Computes the activations.
        max_batch_tokens: Tokens of one batch on the device thread.
        max_queue: Conversations that may wait; one more is refused.
    """

    def __init__(self, source: ActivationSource, *, max_batch_tokens: int = 4096, max_queue: int = 1024) -> None:
        self._source = source
        # The device thread knows the source, not the engine: an engine that nobody uses any more ends it.
        self._batcher: MicroBatcher[_Item, _Done] = MicroBatcher(
            partial(_time_batch, source),
            cost=lambda item: item.tokens,
            max_batch_cost=max_batch_tokens,
            max_queue=max_queue,
        )
        self._max_queue = max_queue
        weakref.finalize(self, self._batcher.close)

    @property
    def spec(self) -> ActivationSpec:
        """What was asked for."""
        return self._source.spec

    @property
    def fingerprint(self) -> Fingerprint:
        """What was loaded."""
        return self._source.fingerprint

    @property
    def width(self) -> int:
        """Width of an activation: all layers side by side."""
        return self.fingerprint.hidden_size * len(self.spec.layers)

    async def run(self, conversation: Conversation, head: Head) -> Reading:
        """Return the head's rows for one conversation and what they took, without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationError: The chat template refused the conversation.
        """
        windows = await tokenize(self._source.tokenize, conversation)
        item, submitted = _item(windows, head), perf_counter()
        done = await self._batcher(item)
        return Reading(
            _to_numpy(done.rows),
            queue_ms=1e3 * (done.started - submitted),
            forward_ms=1e3 * (done.ended - done.started),
        )

    def run_many(self, conversations: Sequence[Conversation], head: Head) -> list[NDArray[np.float32]]:
        """Return the head's rows for many conversations, each of shape [windows, K], blocking.

        They go through the same tokeniser, batcher and forward pass as :meth:`run`, shortest first.

        Raises:
            OverlongError: A conversation exceeds ``spec.max_tokens``.
            OverloadedError: Other callers have filled the queue.
            ActivationError: The chat template refused a conversation.
        """
        items = [_item(self._source.tokenize(conversation), head) for conversation in conversations]
        return [_to_numpy(rows) for rows in self._submit_all(items)]

    def tokens_of(self, conversations: Sequence[Conversation]) -> list[Ragged]:
        """Return the token activations of many conversations, one segment a window, on the CPU, blocking.

        In the data type of the forward pass. Heavy: hundreds of kilobytes for a long conversation.

        Raises:
            OverlongError: A conversation exceeds ``spec.max_tokens``.
            OverloadedError: Other callers have filled the queue.
            ActivationError: The chat template refused a conversation.
        """
        windows = [self._source.tokenize(conversation) for conversation in conversations]
        values = self._submit_all([_token_item(each) for each in windows])
        return [Ragged(tokens, tuple(map(len, each))) for tokens, each in zip(values, windows, strict=True)]

    def _submit_all(self, items: Sequence[_Item]) -> list[torch.Tensor]:
        order = sorted(range(len(items)), key=lambda i: items[i].tokens)
        results: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), self._max_queue // 2):
            part = order[start : start + self._max_queue // 2]
            futures = self._batcher.submit_all([items[i] for i in part])
            results.update((i, future.result().rows) for i, future in zip(part, futures, strict=True))
        return [results[i] for i in range(len(items))]

    def close(self) -> None:
        """Stop the device thread; conversations that still wait get an error."""
        self._batcher.close()


def _time_batch(source: ActivationSource, items: Sequence[_Item]) -> list[_Done]:
    started = perf_counter()
    results = _run_batch(source, items)
    ended = perf_counter()
    return [_Done(rows, started, ended) for rows in results]


@torch.inference_mode()
def _run_batch(source: ActivationSource, items: Sequence[_Item]) -> list[torch.Tensor]:
    tokens = source.activations([window for item in items for window in item.windows])
    heads = list(dict.fromkeys(item.head for item in items))
    if len(heads) == 1:
        return list(heads[0](tokens).cpu().split([item.rows for item in items]))
    # Policies that share a base model share its forward pass; each head sees its own conversations.
    conversations = tokens.values.split([item.tokens for item in items])
    results: dict[int, torch.Tensor] = {}
    for head in heads:
        group = [i for i, item in enumerate(items) if item.head == head]
        lengths = tuple(len(window) for i in group for window in items[i].windows)
        rows = head(Ragged(torch.cat([conversations[i] for i in group]), lengths)).cpu()
        results.update(zip(group, rows.split([items[i].rows for i in group]), strict=True))
    return [results[i] for i in range(len(items))]


def _to_numpy(rows: torch.Tensor) -> NDArray[np.float32]:
    converted: NDArray[np.float32] = rows.float().numpy()
    return converted


def _item(windows: Windows, head: Head) -> _Item:
    return _Item(windows, head, tokens=sum(map(len, windows)), rows=len(windows))


def _token_item(windows: Windows) -> _Item:
    tokens = sum(map(len, windows))
    return _Item(windows, _values, tokens=tokens, rows=tokens)


def _values(tokens: Ragged) -> torch.Tensor:
    return tokens.values


class _Registry:
    """The base models of this process, one engine for each spec and device, as long as somebody uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: weakref.WeakValueDictionary[tuple[ActivationSpec, str], ActivationEngine] = (
            weakref.WeakValueDictionary()
        )

    def get(self, spec: ActivationSpec, device: str) -> ActivationEngine:
        key = (spec, pick_device(device))
        # Held while loading: a second caller waits for the first instead of loading the model twice.
        with self._lock:
            engine = self._engines.get(key)
            if engine is None:
                engine = ActivationEngine(HuggingFaceSource(spec, device=key[1]))
                # The first pass is slow: libraries choose their kernels. No user shall wait for it.
                engine.tokens_of([Conversation.from_text("warm-up")])
                self._engines[key] = engine
            return engine


_REGISTRY = _Registry()


def get_engine(spec: ActivationSpec, *, device: str = "auto") -> ActivationEngine:
    """Return the process-wide engine for a spec, loading and warming up the base model on first use.

    It is shared as long as somebody holds it; when the last user lets go of it, model and device thread end.

    Raises:
        ActivationError: The model cannot be found or loaded.
        ConfigError: A layer or the site does not exist in this model.
        DependencyError: ``package:NAME`` is not installed.
    """
    return _REGISTRY.get(spec, device)
