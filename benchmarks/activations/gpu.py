"""Figures of a GPU: its attention kernel against SDPA, and the forward pass against the speed of a large matmul."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.activations.base_models import lognormal_lengths, random_llama
from benchmarks.activations.stopwatch import Stopwatch
from ctd_guardrail.activations import packing as attention
from ctd_guardrail.activations.packing import Packing, packed_attention

__all__ = ["measure_gpu"]

_SIDE: Final = 8192
_HEADS, _KEY_HEADS, _SIZE = 32, 8, 128
_WINDOW: Final = 512
# Blocks of Llama-3.1-8B.
_LARGE: Final = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 8,
    "num_attention_heads": _HEADS, "num_key_value_heads": _KEY_HEADS,
}  # fmt: skip


class _Layer(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.is_causal = causal


def measure_gpu(device: str, rounds: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows: base model, figure, target and value."""
    for causal in (True, False):
        for window in (None, _WINDOW):
            worst = _largest_difference(device, causal=causal, window=window)
            figure = f"varlen kernel against SDPA, causal {causal}, window {window}, bf16"
            yield "", figure, "<= 0.02", f"{worst:.4f}"
    yield from _ceiling(device, rounds)


def _largest_difference(device: str, *, causal: bool, window: int | None) -> float:
    """Return the largest difference of an output, relative to the spread. Lengths lie around the window's edge."""
    lengths = (1, 17, _WINDOW - 1, _WINDOW, _WINDOW + 1, 2 * _WINDOW + 1, 1500)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), _SIZE, device=device, dtype=torch.bfloat16, generator=generator)
        for heads in (_HEADS, _KEY_HEADS, _KEY_HEADS)
    )
    layer, packing = _Layer(causal=causal), Packing(lengths)
    at_once, _ = packed_attention(layer, query, key, value, None, packing=packing, sliding_window=window)
    rule = attention._Rule(causal, None, window, None)  # noqa: SLF001  # the other way, on the same device
    by_sequence = attention._run_by_run((query, key, value), packing, rule)  # noqa: SLF001
    return float((at_once[0].float() - by_sequence.float()).abs().max() / by_sequence.float().std())


@torch.inference_mode()
def _ceiling(device: str, rounds: int) -> Iterator[tuple[str, str, str, str]]:
    watch = Stopwatch(device)
    square = torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16)
    matmul = watch.medians({"matmul": lambda: square @ square}, rounds)["matmul"]
    ceiling = 2 * _SIDE**3 / matmul / 1e12
    yield "", f"matmul of {_SIDE} x {_SIDE}, bf16, TFLOP/s", "", f"{ceiling:.0f}"
    with tempfile.TemporaryDirectory() as folder:
        base = random_llama(Path(folder), device, **_LARGE)
        source = base.source(base.depth, dtype="bfloat16")
        weights = sum(each.numel() for each in source.module.layers.parameters())  # type: ignore[misc, union-attr]
        for name, lengths in (("88 tokens on average", lognormal_lengths(256)), ("512 tokens", np.full(32, 512))):
            windows = sorted((source.tokenize(each)[0] for each in base.conversations(lengths)), key=len)
            tokens = sum(map(len, windows))
            seconds = watch.medians({name: partial(source.activations, windows)}, rounds)[name]
            achieved = 2 * weights * tokens / seconds / 1e12
            yield "blocks of an 8B Llama", f"bf16, {name}, TFLOP/s", "", f"{achieved:.0f}"
            yield "blocks of an 8B Llama", f"bf16, {name}, of the matmul", "", f"{achieved / ceiling:.2f}"
