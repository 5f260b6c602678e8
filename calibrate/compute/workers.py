"""Workers that run the base model on chunks of conversations: this process, or the actors of a Ray cluster.

Both call the same function on the same chunks, so both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.errors import ActivationError, InputError, OverloadedError
from ctd_guardrail.text.conversation import Conversation

__all__ = ["InProcess", "RefusedError", "Tensors", "Work", "Workers", "run_work"]

Tensors = dict[str, torch.Tensor]

Work = Callable[[BatchedBaseModel, Sequence[Conversation]], Tensors]
"""Maps a chunk of conversations to named tensors. A function of a module, or a partial of one."""


class RefusedError(Exception):
    """The base model or its chat template refuses a conversation.

    Args:
        chunk: Number of its chunk.
        place: Its place in the chunk.
        problem: The fault of the conversation.
        hint: Advice for the user.
    """

    def __init__(self, chunk: int, place: int, problem: str, hint: str) -> None:
        self.chunk = chunk
        self.place = place
        self.problem = problem
        self.hint = hint
        super().__init__(problem)


class Workers(Protocol):
    """Applies a piece of work to many chunks."""

    def map(self, work: Work, chunks: Sequence[Sequence[Conversation]]) -> Iterator[tuple[int, Tensors]]:
        """Yield the number of each chunk and its tensors, as they arrive, in any order.

        Raises:
            RefusedError: A conversation cannot be read.
            ActivationError: The base model failed.
        """
        ...


class InProcess:
    """Computes one chunk after the other in this process.

    Args:
        base_model: The base model.
    """

    def __init__(self, base_model: BatchedBaseModel) -> None:
        self._base_model = base_model

    def map(self, work: Work, chunks: Sequence[Sequence[Conversation]]) -> Iterator[tuple[int, Tensors]]:
        """Yield the number of each chunk and its tensors.

        Raises:
            RefusedError: A conversation cannot be read.
            ActivationError: The base model failed.
        """
        for number, chunk in enumerate(chunks):
            yield number, run_work(work, self._base_model, number, chunk)


def run_work(work: Work, base_model: BatchedBaseModel, number: int, chunk: Sequence[Conversation]) -> Tensors:
    """Return the tensors of one chunk.

    Raises:
        RefusedError: A conversation cannot be read.
        ActivationError: The base model failed.
    """
    try:
        return work(base_model, chunk)
    except OverloadedError:
        raise
    except (InputError, ActivationError):
        # One of the conversations is at fault. Run alone, it fails again.
        for place, conversation in enumerate(chunk):
            try:
                work(base_model, [conversation])
            except (InputError, ActivationError) as error:
                raise RefusedError(number, place, error.problem, error.hint) from error
        raise
