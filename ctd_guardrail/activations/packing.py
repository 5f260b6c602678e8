"""Attention over sequences that lie end to end, without a token of padding.

A batch is one row of N tokens. All parts of a transformer except attention treat each token separately. For attention,
:func:`packed_attention` knows the start of each sequence, and no token attends to another sequence. It is registered
with transformers under :data:`ATTENTION`. A model that is loaded with that name builds no mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["ATTENTION", "Packing", "packed_attention"]

ATTENTION: Final = "ctd_packed"
_HALVES: Final = frozenset({torch.float16, torch.bfloat16})
# Up to this many tokens, one masked product over a whole sequence is as fast as several in the reach of a window.
_WHOLE: Final = 128
_QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Packing:
    """Boundaries of the sequences in a packed batch.

    Args:
        lengths: Tokens of each sequence, all positive, in order.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.longest = max(lengths)
        self._lengths = lengths
        self._boundaries: dict[torch.device, torch.Tensor] = {}

    def position_ids(self) -> torch.Tensor:
        """Return the position of each token in its own sequence, shape [1, tokens]."""
        return torch.tensor([list(chain.from_iterable(map(range, self._lengths)))])

    def boundaries(self, device: torch.device) -> torch.Tensor:
        """Return where each sequence begins, and the end of the last, int32, shape [sequences + 1]."""
        if device not in self._boundaries:
            starts = [0, *accumulate(self._lengths)]
            self._boundaries[device] = torch.tensor(starts, dtype=torch.int32, device=device)
        return self._boundaries[device]

    def runs(self) -> Iterator[tuple[slice, int]]:
        """Yield the tokens of neighbours that are equally long, and the tokens of each."""
        start = 0
        for length, run in groupby(self._lengths):
            end = start + sum(run)
            yield slice(start, end), length
            start = end


@dataclass(frozen=True, slots=True)
class _Rule:
    """Mask and scaling of attention within a sequence."""

    causal: bool
    scaling: float | None
    window: int | None
    softcap: float | None

    def mask(self, queries: range, keys: range, device: torch.device) -> torch.Tensor:
        """Return which query sees which key, shape [queries, keys]."""
        ahead = _indices(queries, device)[:, None] - _indices(keys, device)
        seen = ahead >= 0 if self.causal else torch.ones_like(ahead, dtype=torch.bool)
        return seen if self.window is None else seen & (ahead.abs() < self.window)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence. Transformers calls this in place of its own attention functions.

    Args:
        module: The attention layer; its ``is_causal`` says whether tokens see only those before them.
        query: Shape [1, heads, tokens, head size].
        key: Shape [1, key heads, tokens, head size]; a group of query heads shares one.
        value: Of the shape of ``key``.
        packing: Where the sequences lie.
        scaling: Of the products; None: 1 / sqrt(head size).
        sliding_window: A token sees those at a smaller distance; None: all of its sequence.
        softcap: Products are squashed smoothly into (-softcap, softcap); None: they are not.

    Returns:
        Shape [1, tokens, heads, head size], and None for the weights, which are not used.
    """
    rule = _Rule(bool(module.is_causal), scaling, sliding_window, softcap)
    parts = query, key, value
    if query.is_cuda and query.dtype in _HALVES and softcap is None and _VARLEN is not None:
        attended = _at_once(_VARLEN, parts, packing, rule)
    else:
        attended = _run_by_run(parts, packing, rule)
    return attended.unsqueeze(0), None


def _at_once(varlen: Callable[..., Any], parts: _QueryKeyValue, packing: Packing, rule: _Rule) -> torch.Tensor:
    """Attend in one kernel, which reads the boundaries itself."""
    # Its windows count the neighbours on each side, without the token itself; -1 is no limit.
    reach = -1 if rule.window is None else rule.window - 1
    boundaries = packing.boundaries(parts[0].device)
    attended: torch.Tensor = varlen(
        *(part[0].transpose(0, 1) for part in parts),
        boundaries,
        boundaries,
        packing.longest,
        packing.longest,
        scale=rule.scaling,
        window_size=(reach, 0 if rule.causal else reach),
        enable_gqa=True,
        # Split sums depend on the longest sequence of the batch, and no score may depend on its neighbours.
        num_splits=1,
    )
    return attended


def _run_by_run(parts: _QueryKeyValue, packing: Packing, rule: _Rule) -> torch.Tensor:
    """Attend sequence by sequence. Neighbours of equal length share a call."""
    query, key, value = parts
    attended = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for run, length in packing.runs():
        q, k, v = (part[0, :, run].unflatten(1, (-1, length)).transpose(0, 1) for part in (query, key, value))
        out = attended[run].unflatten(0, (-1, length)).transpose(1, 2)
        if rule.softcap is None and (rule.window is None or rule.window >= length):
            out.copy_(scaled_dot_product_attention(q, k, v, is_causal=rule.causal, scale=rule.scaling, enable_gqa=True))
        else:
            _block_by_block((q, k, v), out, rule)
    return attended


def _block_by_block(parts: _QueryKeyValue, out: torch.Tensor, rule: _Rule) -> None:
    """Attend blocks of queries to the keys in their reach: linear, not quadratic, in the length of a sequence."""
    query, key, value = parts
    length = query.shape[2]
    window = length if rule.window is None else rule.window
    if length <= max(_WHOLE, 2 * window):
        window = length
    for start in range(0, length, window):
        queries = range(start, min(start + window, length))
        behind, ahead = max(0, start - window + 1), min(length, queries.stop + window - 1)
        keys = range(behind, queries.stop if rule.causal else ahead)
        q, k, v = query[:, :, _slice(queries)], key[:, :, _slice(keys)], value[:, :, _slice(keys)]
        mask = rule.mask(queries, keys, query.device)
        if rule.softcap is None:
            block = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=rule.scaling, enable_gqa=True)
        else:
            block = _softcapped((q, k, v), mask, rule.scaling or q.shape[3] ** -0.5, rule.softcap)
        out[:, :, _slice(queries)] = block


def _softcapped(parts: _QueryKeyValue, mask: torch.Tensor, scaling: float, softcap: float) -> torch.Tensor:
    query, key, value = parts
    groups = query.shape[1] // key.shape[1]
    products = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
    capped = softcap * torch.tanh(products / softcap)
    weights = capped.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value.repeat_interleave(groups, dim=1)


def _indices(positions: range, device: torch.device) -> torch.Tensor:
    return torch.arange(positions.start, positions.stop, device=device)


def _slice(positions: range) -> slice:
    return slice(positions.start, positions.stop)


def _find_varlen() -> Callable[..., Any] | None:
    """Return torch's attention over ragged sequences, or None if this torch lacks an option of it."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415
    except ImportError:
        return None
    needed = {"window_size", "enable_gqa", "num_splits"}
    return varlen_attn if needed <= inspect.signature(varlen_attn).parameters.keys() else None


_VARLEN: Final = _find_varlen()
AttentionInterface.register(ATTENTION, packed_attention)
