"""Attention within the sequences of a packed row, and the arguments of the kernel that does it at once on a GPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ctd_guardrail.activations import packing as module
from ctd_guardrail.activations.packing import Packing, packed_attention

# The last is long enough to be attended block by block.
LENGTHS = (3, 9, 9, 1, 25, 150)
HEADS, KEY_HEADS, SIZE = 4, 2, 8


class Layer(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.is_causal = causal


def parts(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    # As projections leave them: heads are the inner dimension in memory.
    return tuple(torch.randn(1, sum(lengths), heads, SIZE).transpose(1, 2) for heads in (HEADS, KEY_HEADS, KEY_HEADS))  # type: ignore[return-value]


def attend(*, causal: bool, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> torch.Tensor:
    query, key, value = parts(lengths)
    attended, weights = packed_attention(
        Layer(causal=causal), query, key, value, None, packing=Packing(lengths), **options
    )
    assert weights is None
    return attended


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """Softmax attention of one sequence, each of shape [tokens, heads, size], in the plainest words."""
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, dim=1) for each in (key, value))
    products = torch.einsum("qhd,khd->hqk", query, key) * scale
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    return torch.einsum("hqk,khd->qhd", products.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 8, 9, 10, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_each_sequence_attends_to_itself_alone(causal: bool, window: int | None, softcap: float | None) -> None:  # noqa: FBT001
    attended = attend(causal=causal, sliding_window=window, softcap=softcap, scaling=0.4)[0].split(LENGTHS)
    each = zip(*(part[0].transpose(0, 1).split(LENGTHS) for part in parts()), attended, strict=True)
    for query, key, value, out in each:
        ahead = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = (ahead >= 0) if causal else torch.ones_like(ahead, dtype=torch.bool)
        if window is not None:
            seen &= ahead.abs() < window
        torch.testing.assert_close(out, by_definition(query, key, value, seen, 0.4, softcap), atol=1e-6, rtol=1e-5)


def test_boundaries_and_positions_are_those_of_the_sequences() -> None:
    packing = Packing((2, 3, 1))
    assert packing.position_ids().tolist() == [[0, 1, 0, 1, 2, 0]]
    boundaries = packing.boundaries(torch.device("cpu"))
    assert (boundaries.tolist(), boundaries.dtype) == ([0, 2, 5, 6], torch.int32)
    assert packing.longest == 3


def test_equally_long_neighbours_share_a_call() -> None:
    assert list(Packing((4, 4, 2, 4)).runs()) == [(slice(0, 8), 4), (slice(8, 10), 2), (slice(10, 14), 4)]


class Kernel:
    """Does on the CPU what ``torch.nn.attention.varlen.varlen_attn`` documents."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        assert query.shape[1:] == (HEADS, SIZE)
        assert key.shape == value.shape == (len(query), KEY_HEADS, SIZE)
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_k is cu_seq_q
        bounds = cu_seq_q.tolist()
        assert (bounds[0], bounds[-1]) == (0, len(query))
        assert max_q == max_k == max(end - start for start, end in pairwise(bounds))
        assert enable_gqa
        assert num_splits == 1
        left, right = window_size
        out = torch.empty_like(query)
        for start, end in pairwise(bounds):
            ahead = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = torch.ones_like(ahead, dtype=torch.bool)
            if left >= 0:
                seen &= ahead <= left
            if right >= 0:
                seen &= -ahead <= right
            rows = slice(start, end)
            out[rows] = by_definition(query[rows], key[rows], value[rows], seen, scale or SIZE**-0.5, None)
        return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 8, 9, 10])
def test_the_kernel_is_told_the_same_rule(causal: bool, window: int | None) -> None:  # noqa: FBT001
    """The kernel itself needs a GPU; what it is called with does not."""
    rule = module._Rule(causal, None, window, None)
    at_once = module._at_once(Kernel(), parts(), Packing(LENGTHS), rule)
    torch.testing.assert_close(at_once, attend(causal=causal, sliding_window=window)[0], atol=1e-6, rtol=1e-5)


def test_this_torch_has_the_kernel_with_all_arguments() -> None:
    assert module._VARLEN is not None


@pytest.mark.parametrize("causal", [True, False])
def test_no_token_sees_another_sequence_or_beyond_its_window(causal: bool) -> None:  # noqa: FBT001
    """Infinite values of others would show in any sum that they enter."""
    query, key, value = parts((6, 140))
    value[:, :, :6] = torch.nan
    value[:, :, 6] = torch.nan
    packing = Packing((6, 140))
    attended, _ = packed_attention(Layer(causal=causal), query, key, value, None, packing=packing, sliding_window=5)
    reached = attended[0, 6:].isnan().any(dim=(1, 2))
    assert reached.tolist() == [i < 5 for i in range(140)]
