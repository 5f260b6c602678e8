"""Who computes what the base model makes of chunks of conversations: this process, or the actors of a Ray cluster.

Both call the same function on the same chunks, so both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.errors import ActivationError, InputError, OverloadedError
from ctd_guardrail.text.conversation import Conversation

__all__ = ["InProcess", "RefusedError", "Tensors", "Work", "Workers", "do"]

Tensors = dict[str, torch.Tensor]

Work = Callable[[BatchedBaseModel, Sequence[Conversation]], Tensors]
"""Maps a chunk of conversations to what is kept of it, under names. A module's function or a partial of one."""


class RefusedError(Exception):
    """The base model or its chat template refuses a conversation.

    Args:
        chunk: Number of its chunk.
        place: Its place in the chunk.
        problem: What is wrong with it.
        hint: What to do about it.
    """

    def __init__(self, chunk: int, place: int, problem: str, hint: str) -> None:
        self.chunk = chunk
        self.place = place
        self.problem = problem
        self.hint = hint
        super().__init__(problem)


class Workers(Protocol):
    """Does a piece of work on many chunks."""

    def map(self, work: Work, chunks: Sequence[Sequence[Conversation]]) -> Iterator[tuple[int, Tensors]]:
        """Yield the number of each chunk and what was made of it, as soon as it is there, in any order.

        Raises:
            RefusedError: A conversation cannot be read.
            ActivationError: The base model failed.
        """
        ...


class InProcess:
    """The plain loop: one chunk after the other.

    Args:
        engine: The base model.
    """

    def __init__(self, engine: BatchedBaseModel) -> None:
        self._engine = engine

    def map(self, work: Work, chunks: Sequence[Sequence[Conversation]]) -> Iterator[tuple[int, Tensors]]:
        """Yield the number of each chunk and what was made of it.

        Raises:
            RefusedError: A conversation cannot be read.
            ActivationError: The base model failed.
        """
        for number, chunk in enumerate(chunks):
            yield number, do(work, self._engine, number, chunk)


def do(work: Work, engine: BatchedBaseModel, number: int, chunk: Sequence[Conversation]) -> Tensors:
    """Return what is made of one chunk.

    Raises:
        RefusedError: A conversation cannot be read.
        ActivationError: The base model failed.
    """
    try:
        return work(engine, chunk)
    except OverloadedError:
        raise
    except (InputError, ActivationError):
        # One of them is to blame; alone, each says whether it is.
        for place, conversation in enumerate(chunk):
            try:
                work(engine, [conversation])
            except (InputError, ActivationError) as error:
                raise RefusedError(number, place, error.problem, error.hint) from error
        raise
