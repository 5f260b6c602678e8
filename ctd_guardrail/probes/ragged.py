"""Token activations of windows of different lengths, without padding."""

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

    A segment's mean depends on the segment alone: a window has the same mean alone and among others.
    """
    values = ragged.values.float()
    lengths = torch.tensor(ragged.lengths, device=values.device)
    segment = torch.repeat_interleave(lengths, output_size=values.shape[0])
    sums = values.new_zeros(len(ragged.lengths), values.shape[1]).index_add_(0, segment, values)
    return sums / lengths[:, None]
