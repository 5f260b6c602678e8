"""Arithmetic within the segments of a ragged tensor, for all segments at once.

A segment's result does not depend on its neighbours. Sums do not cross a border. Values from beyond a border are
removed by selection: a factor of zero would keep NaN and infinity. All functions are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Segments"]


@dataclass(frozen=True, slots=True)
class Segments:
    """Layout of the segments of a ragged tensor of T tokens.

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
        """Return the layout of segments of these lengths, all positive."""
        total = sum(lengths)
        sizes = torch.tensor(lengths, device=device)
        number = torch.repeat_interleave(sizes, output_size=total)
        position = torch.arange(total, device=device) - (sizes.cumsum(0) - sizes)[number]
        return cls(sizes, number, position, max(lengths))

    def reduce(self, values: torch.Tensor, how: Literal["mean", "sum", "max"]) -> torch.Tensor:
        """Reduce the tokens of each segment, shape [T, columns], to one row, shape [segments, columns]."""
        reduced: torch.Tensor = torch.segment_reduce(values, how, lengths=self.lengths, unsafe=True)
        return reduced

    def shift(self, values: torch.Tensor, tokens: int) -> torch.Tensor:
        """Shift the values by a number of tokens. Tokens without a predecessor in the segment get zero."""
        if tokens == 0:
            return values
        if tokens >= self.longest:
            return torch.zeros_like(values)
        moved = torch.nn.functional.pad(values[:-tokens], (0, 0, tokens, 0))
        return torch.where((self.position >= tokens)[:, None], moved, 0.0)
