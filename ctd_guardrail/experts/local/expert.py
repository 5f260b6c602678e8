"""An expert in this process: a Hugging Face sequence classifier or causal language model."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.errors import ExpertOverloadedError, ExpertUnavailableError, InputError, OverloadedError
from ctd_guardrail.experts.local.classifier import ClassifierReader
from ctd_guardrail.experts.local.likelihood import LikelihoodReader
from ctd_guardrail.experts.local.model import load
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared
from ctd_guardrail.text.conversation import Conversation

__all__ = ["LocalExpert"]

_MAX_BATCH_TOKENS: Final = 4096
# Below this many characters a thread hop costs more than tokenising on the spot.
_INLINE_CHARACTERS: Final = 4096


class _Reader(Protocol):
    """One of the two ways to read a model's judgement. Each defines its own windows."""

    @property
    def identity(self) -> str: ...

    def read(self, conversation: Conversation) -> Sequence[Any]: ...

    def cost(self, window: Any) -> int: ...

    def score(self, windows: Sequence[Any]) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class _Item:
    windows: Sequence[Any]
    tokens: int


class LocalExpert:
    """Scores conversations of all callers on one device thread.

    Experts with the same configuration share one loaded model: hosts build an expert for each name under which they
    serve a model. Batching and padding do not change a score in float32 beyond rounding.

    Args:
        config: Model and reading. Loading blocks.
        runtime: Shares loaded models; None: the runtime of the process.

    Raises:
        ConfigError: The model cannot be loaded, or a setting does not fit it.
        DependencyError: ``package:NAME`` is not installed.
    """

    def __init__(self, config: LocalExpertConfig, *, runtime: Runtime | None = None) -> None:
        services: Shared[LocalExpertConfig, _Service] = (runtime or Runtime.default()).shared("local experts")
        service = services.get(config, lambda: _Service(config))
        self._service: _Service | None = service
        self._identity = service.identity

    @property
    def identity(self) -> str:
        """Kind, architecture, weights, tokenizer, dtype, and how the answer is read."""
        return self._identity

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation: the highest over its windows.

        Raises:
            OverlongError: It has more tokens than an expert reads.
            ExpertOverloadedError: The queue is full.
            ExpertUnavailableError: The model failed, or the expert is closed.
        """
        service = self._service
        if service is None:
            raise ExpertUnavailableError("the local expert is closed")
        try:
            if sum(len(message.content) for message in conversation.messages) <= _INLINE_CHARACTERS:
                item = service.read(conversation)
            else:
                item = await asyncio.to_thread(service.read, conversation)
            p_unsafe = await service.batcher(item)
        except (InputError, ExpertUnavailableError):
            raise
        except OverloadedError:
            raise ExpertOverloadedError(
                "too many conversations are waiting for the local expert",
                hint="Lower alpha, use a faster device, or add replicas",
            ) from None
        except Exception as error:  # noqa: BLE001  # a forward pass may raise anything, for example out of memory
            raise ExpertUnavailableError(
                f"the local expert failed ({type(error).__name__})",
                hint="If the device is out of memory, use a larger device or a smaller model",
            ) from None
        return ExpertScore(p_unsafe, tokens=item.tokens)

    async def aclose(self) -> None:
        """Release the model. The last expert that releases it frees it."""
        self._service = None


class _Service:
    """A loaded model behind its device thread."""

    def __init__(self, config: LocalExpertConfig) -> None:
        local = load(config)
        reader: _Reader = (
            ClassifierReader(local, config) if local.kind == "classifier" else LikelihoodReader(local, config)
        )
        self._reader = reader
        self.identity = f"local:{local.kind}:{local.identity}:{reader.identity}"
        self.batcher: MicroBatcher[_Item, float] = MicroBatcher(
            lambda items: _score(reader, items),
            cost=lambda item: item.tokens,
            max_batch_cost=_MAX_BATCH_TOKENS,
            name="ctd-local-expert",
        )
        self.close = weakref.finalize(self, self.batcher.close)

    def read(self, conversation: Conversation) -> _Item:
        windows = self._reader.read(conversation)
        return _Item(windows, sum(map(self._reader.cost, windows)))


def _score(reader: _Reader, items: Sequence[_Item]) -> list[float]:
    scores = iter(reader.score([window for item in items for window in item.windows]))
    return [max(next(scores) for _ in item.windows) for item in items]
