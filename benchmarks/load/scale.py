"""Arithmetic of ``docs/scaling.md``: size and cost of a guard for much traffic, as pure functions.

``python -m benchmarks.load.scale`` prints the tables of that page. A test compares the page with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ctd_guardrail.policy.budget import max_exceedances, min_rows

__all__ = ["TABLES", "Shape", "disk_gb", "expert_flop", "forward_flop", "gpu_seconds_per_million", "replicas"]

SECONDS_A_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a decoder.

    Attributes:
        hidden: Width of the residual stream.
        key_value: Width of keys, and of values.
        feed_forward: Width of the gated feed-forward part.
        layers: Number of blocks.
    """

    hidden: int
    key_value: int
    feed_forward: int
    layers: int


LLAMA_1B: Final = Shape(hidden=2048, key_value=512, feed_forward=8192, layers=16)
LLAMA_8B: Final = Shape(hidden=4096, key_value=1024, feed_forward=14_336, layers=32)
_EXPERT_PARAMETERS: Final = 70.6e9
_TFLOPS: Final = 400.0
_EXPERT_PROMPT: Final = 400
_TOKENS: Final = 512
_BUSY: Final = 0.6
_PEAK: Final = 2.0


def forward_flop(shape: Shape, layers: int, tokens: int) -> float:
    """Return the floating-point operations of a truncated forward pass over one causal sequence.

    Each weight and token takes two. Attention takes scores and their sums over half of the tokens on average.
    """
    attention = 2 * shape.hidden**2 + 2 * shape.hidden * shape.key_value
    weights = layers * (attention + 3 * shape.hidden * shape.feed_forward)
    return tokens * (2.0 * weights + 4.0 * layers * shape.hidden * tokens / 2)


def expert_flop(parameters: float, tokens: int, *, prompt: int = _EXPERT_PROMPT) -> float:
    """Return the floating-point operations of one call of an expert that reads the input inside its own prompt."""
    return 2.0 * parameters * (tokens + prompt)


def gpu_seconds_per_million(flop: float, *, tflops: float = _TFLOPS) -> float:
    """Return the seconds of one GPU for a million requests, at an achieved speed."""
    return 1e6 * flop / (tflops * 1e12)


def replicas(a_day: float, seconds_each: float, *, busy: float = _BUSY, peak: float = _PEAK) -> int:
    """Return the number of devices for a number of requests a day.

    Args:
        a_day: Requests a day.
        seconds_each: Seconds of a device for one request.
        busy: Share of the time that a device works at the peak. The rest keeps queues short.
        peak: Rate at the peak, divided by the daily mean.
    """
    return max(1, math.ceil(a_day / SECONDS_A_DAY * peak * seconds_each / busy))


def disk_gb(rows: float, width: int, *, tokens: float = 1.0, value_bytes: int = 2) -> float:
    """Return the gigabytes of activations: one vector a token, or one a row if ``tokens`` is 1."""
    return rows * tokens * width * value_bytes / 1e9


def traffic_table() -> str:
    """Return devices by requests a day."""
    columns = ["requests a day", "a second, at the peak", "Llama-3.2-1B, half depth", "Llama-3.1-8B, half depth"]
    columns += ["the 70B expert for all", "for 10%"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    small, large = (forward_flop(shape, shape.layers // 2, _TOKENS) for shape in (LLAMA_1B, LLAMA_8B))
    expert = expert_flop(_EXPERT_PARAMETERS, _TOKENS)
    for a_day in (1e5, 1e6, 1e7, 1e8, 1e9):
        cells = [
            replicas(share * a_day, gpu_seconds_per_million(flop) / 1e6)
            for share, flop in ((1.0, small), (1.0, large), (1.0, expert), (0.1, expert))
        ]
        peak = a_day / SECONDS_A_DAY * _PEAK
        lines.append(f"| {a_day:,.0f} | {peak:,.0f} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return "\n".join(lines)


def gpu_table() -> str:
    """Return GPU seconds of a million requests, and their share of the expert's."""
    lines = ["| forward pass | TFLOP a request | GPU seconds a million | of a call of the expert |", "|---" * 4 + "|"]
    expert = expert_flop(_EXPERT_PARAMETERS, _TOKENS)
    for name, shape in (("Llama-3.2-1B, 8 of 16 layers", LLAMA_1B), ("Llama-3.1-8B, 16 of 32 layers", LLAMA_8B)):
        flop = forward_flop(shape, shape.layers // 2, _TOKENS)
        lines.append(f"| {name} | {flop / 1e12:.2f} | {gpu_seconds_per_million(flop):,.0f} | {flop / expert:.1%} |")
    lines.append(f"| a 70B expert, one call | {expert / 1e12:.0f} | {gpu_seconds_per_million(expert):,.0f} | 100% |")
    return "\n".join(lines)


def calls_table() -> str:
    """Return the expert's calls of a billion requests, and the cost of the cascade as a share of the expert alone."""
    lines = ["| alpha | calls at most | calls saved at least | GPU time of probe and expert, of the expert's alone |"]
    lines.append("|---" * 4 + "|")
    share = forward_flop(LLAMA_8B, 16, _TOKENS) / expert_flop(_EXPERT_PARAMETERS, _TOKENS)
    lines += [
        f"| {alpha:g} | {1e9 * alpha:,.0f} | {1e9 * (1 - alpha):,.0f} | {share + alpha:.1%} |"
        for alpha in (0.01, 0.02, 0.05, 0.1, 0.2)
    ]
    return "\n".join(lines)


def disk_table() -> str:
    """Return the size of activations of 100,000 and 10 million rows."""
    width, mean = 3584, 95
    kinds = (
        ("all tokens, padded to 512, bfloat16", 512.0),
        (f"all tokens, ragged (mean {mean}), bfloat16", float(mean)),
    )
    lines = ["| kept, width 3,584 | 8,000 rows | 100,000 rows | 10 million rows |", "|---" * 4 + "|"]
    counts = (8e3, 1e5, 1e7)
    for name, tokens in kinds:
        lines.append(f"| {name} | {' | '.join(_size(disk_gb(rows, width, tokens=tokens)) for rows in counts)} |")
    means = " | ".join(_size(disk_gb(rows, width + 1, value_bytes=4)) for rows in counts)
    lines.append(f"| mean and length of one window, float32 | {means} |")
    return "\n".join(lines)


def _size(gigabytes: float) -> str:
    return f"{gigabytes / 1e3:,.1f} TB" if gigabytes >= 1e3 else f"{gigabytes:,.1f} GB"  # noqa: PLR2004  # 1,000 GB


def rows_table() -> str:
    """Return the fewest rows that certify alpha at delta = .05, and the usable part of alpha by number of rows."""
    counts = (300, 1_000, 3_000, 10_000, 100_000)
    lines = [
        f"| alpha | rows at least | {' | '.join(f'{n:,} rows' for n in counts)} |",
        "|---" * (len(counts) + 2) + "|",
    ]
    for alpha in (0.01, 0.02, 0.05, 0.1, 0.2):
        cells = []
        for n in counts:
            k = max_exceedances(n, alpha=alpha, delta=0.05)
            cells.append("-" if k < 0 else f"{(k + 1) / (n + 1) / alpha:.0%}")
        lines.append(f"| {alpha:g} | {min_rows(alpha=alpha, delta=0.05):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: Final = (traffic_table, gpu_table, calls_table, disk_table, rows_table)


def main() -> None:
    """Print every table."""
    for table in TABLES:
        print(f"{table()}\n")


if __name__ == "__main__":
    main()
