"""A base model in service: activations, micro-batched on its device thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.activations.huggingface import HuggingFaceSource, pick_device
from ctd_guardrail.activations.ragged import Ragged
from ctd_guardrail.activations.source import ActivationSource, Windows
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.conversation import Conversation

__all__ = ["ActivationEngine", "Head", "get_engine"]

Head = Callable[[Ragged], torch.Tensor]
"""Reduces token activations, one segment a conversation, to one row a conversation, shape [conversations, K]."""

# Below this many characters a thread hop costs more than tokenising on the spot (about 1 ms).
_INLINE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class _Item:
    windows: Windows
    head: Head
    tokens: int


class ActivationEngine:
    """Serves one :class:`ActivationSource` to any number of event loops, threads and policies.

    Args:
        source: Computes the activations.
        max_batch_tokens: Tokens of one batch on the device thread.
        max_queue: Conversations that may wait; one more is refused.
    """

    def __init__(self, source: ActivationSource, *, max_batch_tokens: int = 4096, max_queue: int = 1024) -> None:
        self._source = source
        self._batcher: MicroBatcher[_Item, NDArray[np.float32]] = MicroBatcher(
            self._run_batch, cost=lambda item: item.tokens, max_batch_cost=max_batch_tokens, max_queue=max_queue
        )
        self._max_queue = max_queue

    @property
    def spec(self) -> ActivationSpec:
        """What was asked for."""
        return self._source.spec

    @property
    def fingerprint(self) -> Fingerprint:
        """What was loaded."""
        return self._source.fingerprint

    async def run(self, conversation: Conversation, head: Head) -> NDArray[np.float32]:
        """Return the head's row for one conversation, shape [K], without blocking the event loop.

        Raises:
            OverlongError: The conversation exceeds ``spec.max_tokens``.
            OverloadedError: Too many conversations are waiting.
            ActivationError: The chat template refused the conversation.
        """
        if sum(len(message.content) for message in conversation.messages) <= _INLINE_CHARACTERS:
            windows = self._source.tokenize(conversation)
        else:
            windows = await asyncio.to_thread(self._source.tokenize, conversation)
        return await self._batcher(_item(windows, head))

    def run_many(self, conversations: Sequence[Conversation], head: Head) -> NDArray[np.float32]:
        """Return the head's rows for many conversations, shape [conversations, K], blocking.

        They go through the same tokeniser, batcher and forward pass as :meth:`run`, shortest first.

        Raises:
            OverlongError: A conversation exceeds ``spec.max_tokens``.
            OverloadedError: Other callers have filled the queue.
            ActivationError: The chat template refused a conversation.
        """
        items = [_item(self._source.tokenize(conversation), head) for conversation in conversations]
        order = sorted(range(len(items)), key=lambda i: items[i].tokens)
        rows: list[NDArray[np.float32] | None] = [None] * len(items)
        for start in range(0, len(order), self._max_queue // 2):
            part = order[start : start + self._max_queue // 2]
            futures = [self._batcher.submit(items[i]) for i in part]
            for i, future in zip(part, futures, strict=True):
                rows[i] = future.result()
        return np.stack([row for row in rows if row is not None])

    def close(self) -> None:
        """Stop the device thread; conversations that still wait get an error."""
        self._batcher.close()

    @torch.inference_mode()
    def _run_batch(self, items: Sequence[_Item]) -> list[NDArray[np.float32]]:
        tokens = self._source.activations([window for item in items for window in item.windows])
        # From here on a segment is a conversation; its windows lie side by side.
        conversations = Ragged(tokens.values, tuple(item.tokens for item in items))
        heads = list(dict.fromkeys(item.head for item in items))
        if len(heads) == 1:
            return list(_reduce(conversations, heads[0]))
        # Policies that share a base model share its forward pass; each head sees its own conversations.
        segments = conversations.values.split(list(conversations.lengths))
        rows: dict[int, NDArray[np.float32]] = {}
        for head in heads:
            group = [i for i, item in enumerate(items) if item.head == head]
            part = Ragged(torch.cat([segments[i] for i in group]), tuple(items[i].tokens for i in group))
            rows.update(zip(group, _reduce(part, head), strict=True))
        return [rows[i] for i in range(len(items))]


def _reduce(conversations: Ragged, head: Head) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = head(conversations).float().cpu().numpy()
    return rows


def _item(windows: Windows, head: Head) -> _Item:
    return _Item(windows, head, sum(len(window) for window in windows))


class _Registry:
    """The base models of this process, one engine for each spec and device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[tuple[ActivationSpec, str], ActivationEngine] = {}

    def get(self, spec: ActivationSpec, device: str) -> ActivationEngine:
        key = (spec, pick_device(device))
        # Held while loading: a second caller waits for the first instead of loading the model twice.
        with self._lock:
            engine = self._engines.get(key)
            if engine is None:
                engine = self._engines[key] = ActivationEngine(HuggingFaceSource(spec, device=key[1]))
            return engine


_REGISTRY = _Registry()


def get_engine(spec: ActivationSpec, *, device: str = "auto") -> ActivationEngine:
    """Return the process-wide engine for a spec, loading the base model on first use.

    Raises:
        ActivationError: The model cannot be found or loaded.
        ConfigError: The layer or the site does not exist in this model.
        DependencyError: ``package:NAME`` is not installed.
    """
    return _REGISTRY.get(spec, device)
