"""Arithmetic within the segments of a ragged tensor, for all of them at once.

Whatever a neighbour holds, a segment's result is the same: sums never run across a border, and values from beyond one
are left out by selection and not by a factor of zero, which would let NaN and infinity through. All functions are
differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Segments"]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the segments of a ragged tensor of T tokens lie.

    Attributes:
        lengths: Tokens of each segment, shape [segments].
        number: Segment of each token, shape [T].
        position: Place of each token in its segment, from 0, shape [T].
        longest: Tokens of the longest segment.
    """

    lengths: torch.Tensor
    number: torch.Tensor
    position: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        """Lay out segments of these lengths, all positive."""
        total = sum(lengths)
        sizes = torch.tensor(lengths, device=device)
        number = torch.repeat_interleave(sizes, output_size=total)
        position = torch.arange(total, device=device) - (sizes.cumsum(0) - sizes)[number]
        return cls(sizes, number, position, max(lengths))

    def reduce(self, values: torch.Tensor, how: Literal["mean", "sum", "max"]) -> torch.Tensor:
        """Return one row a segment, shape [segments, columns], from one a token, shape [T, columns]."""
        reduced: torch.Tensor = torch.segment_reduce(values, how, lengths=self.lengths, unsafe=True)
        return reduced

    def shift(self, values: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return the values of so many tokens before, and zero where there are none in the segment."""
        if tokens == 0:
            return values
        if tokens >= self.longest:
            return torch.zeros_like(values)
        moved = torch.nn.functional.pad(values[:-tokens], (0, 0, tokens, 0))
        return torch.where((self.position >= tokens)[:, None], moved, 0.0)
