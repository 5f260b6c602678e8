"""Token activations of conversations of different lengths, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Ragged", "segment_mean"]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of several segments, one after the other.

    Attributes:
        values: Token activations, shape [sum(lengths), width].
        lengths: Tokens of each segment, all positive.
    """

    values: torch.Tensor
    lengths: tuple[int, ...]


def segment_mean(ragged: Ragged) -> torch.Tensor:
    """Return the mean of each segment in float32, shape [len(lengths), width].

    A segment's mean depends on nothing outside the segment: a conversation pools to the same vector alone and in
    company.
    """
    return torch.stack([part.float().mean(dim=0) for part in ragged.values.split(list(ragged.lengths))])
