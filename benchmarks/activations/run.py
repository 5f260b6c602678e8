"""Cost of reading activations. Most figures are ratios of two times of one run.

MiniLM has its real weights, the Llama random ones. Variants of one task take turns, every second round in reverse
order. Times are medians of the process's CPU time on one thread; on a GPU, of the time until it is idle.
Conversations have fixed lognormal lengths with a mean of 88 tokens. ``docs/benchmarks.md`` has the results.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.activations.base_models import BaseModel, lognormal_lengths, minilm, random_llama
from benchmarks.activations.gpu import measure_gpu
from benchmarks.activations.rivals import bare, naive, sentence_transformer, sorted_and_padded
from benchmarks.activations.stopwatch import Stopwatch
from benchmarks.table import Table, add_csv_option
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.batcher import MicroBatcher
from ctd_guardrail.activations.huggingface import HuggingFaceSource, quiet_transformers
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged, segment_mean
from ctd_guardrail.probes.spec import Component, ProbeSpec
from ctd_guardrail.text.conversation import Conversation

Row = tuple[str, str, str, str]
"""Base model, figure, target (empty: none) and value."""

_CHUNK, _SHORT, _LEAST_TEXTS = 1_000, 18, 100_000


COLUMNS: Final = ("part", "model", "figure", "target", "value")


def main() -> None:
    """Measure the parts that the options name, and print one row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="parts to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=48, help="conversations of each round")
    parser.add_argument("--texts", type=int, nargs="+", default=[1_000, 10_000], help="numbers of texts to read")
    add_csv_option(parser)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"this machine has no {options.device}; run it with --device cpu")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {_name(options.device)}, one thread", flush=True)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        bases = [minilm(options.device), random_llama(Path(folder), options.device)]
        table = Table(COLUMNS)
        for part in options.parts:
            table.extend((part, *row) for row in PARTS[part](bases, options))
    table.publish(options.csv)


def measure_forward(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Compare the truncated packed forward pass with the whole model, with padding, and with the guard around it."""
    watch = Stopwatch(options.device)
    for base in bases:
        layer = base.depth // 2
        conversations = base.conversations(lognormal_lengths(options.prompts))
        full, half, padded = base.source(base.depth), base.source(layer), sorted_and_padded(base, layer)
        windows = sorted((half.tokenize(each)[0] for each in conversations), key=len)
        engine = BatchedBaseModel(half)
        probes = _probes(half, windows)
        ragged = half.activations(windows)
        variants: dict[str, Callable[[], object]] = {
            "bare": partial(bare, half, windows),
            "half": partial(half.activations, windows),
            "full": partial(full.activations, windows),
            "engine": partial(_run_all, engine, conversations, probes),
            "padded": partial(padded, windows),
        }
        times = watch.medians(variants, options.rounds)
        probing = statistics.median(
            watch.seconds(partial(_repeat, 20, partial(probes, ragged))) / 20 for _ in range(options.rounds)
        )
        engine.close()
        tokens = sum(map(len, windows))
        yield base.name, "half of the blocks / all, time", "0.475 to 0.525", f"{times['half'] / times['full']:.3f}"
        yield base.name, "throughput / bare packed forward", ">= 0.85", f"{times['bare'] / times['engine']:.3f}"
        yield base.name, "probes / forward, time", "< 0.01", f"{probing / times['half']:.4f}"
        yield base.name, "padded / real tokens", "<= 1.05", f"{_tokens_seen(half, windows) / tokens:.2f}"
        yield base.name, "sorted and padded / packed, time", "", f"{times['padded'] / times['half']:.2f}"


def measure_rivals(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Compare with the naive way, and with sentence-transformers if it is installed."""
    watch = Stopwatch(options.device)
    for base in bases:
        conversations = base.conversations(lognormal_lengths(options.prompts))
        half = base.source(base.depth // 2)
        windows = [half.tokenize(each)[0] for each in conversations]
        usual = naive(base)
        variants: dict[str, Callable[[], object]] = {
            "this": partial(_sort_and_read, half, windows),
            "naive": partial(usual, windows),
        }
        times = watch.medians(variants, max(3, options.rounds // 2))
        yield base.name, "naive way / this, time", ">= 5", f"{times['naive'] / times['this']:.1f}"
    yield from _against_encode(bases[0], watch, options)


def _against_encode(base: BaseModel, watch: Stopwatch, options: argparse.Namespace) -> Iterator[Row]:
    try:
        encode = sentence_transformer(base)
    except ImportError:
        return
    conversations = base.conversations(lognormal_lengths(options.prompts))
    texts = [each.plain_text() for each in conversations]
    whole, half = (BatchedBaseModel(base.source(layer)) for layer in (base.depth, base.depth // 2))
    variants: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(texts),
        "whole": lambda: whole.run_many(conversations, segment_mean),
        "half": lambda: half.run_many(conversations, segment_mean),
    }
    times = watch.medians(variants, options.rounds)
    for engine in (whole, half):
        engine.close()
    figure = "throughput / encode of sentence-transformers"
    yield base.name, f"{figure}, all blocks", ">= 1", f"{times['encode'] / times['whole']:.2f}"
    yield base.name, f"{figure}, half of the blocks", ">= 2", f"{times['encode'] / times['half']:.2f}"


def measure_drift(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Compare scores of a text alone and in a batch, in both precisions, in units of their spread between prompts."""
    for base in bases:
        conversations = base.conversations(lognormal_lengths(options.prompts))
        for pool, name in ((segment_mean, "mean"), (_last, "last token")):
            scores = {}
            for dtype in ("float32", "bfloat16"):
                source = base.source(base.depth // 2, dtype=dtype)
                windows = [source.tokenize(each)[0] for each in conversations]
                scores[dtype, "batch"] = _scores(pool(source.activations(windows)))
                alone = torch.cat([pool(source.activations([window])) for window in windows])
                scores[dtype, "alone"] = _scores(alone)
            for figure, target, changed, reference in (
                ("fp32, batch against alone", "<= 0.0001", ("float32", "batch"), ("float32", "alone")),
                ("bf16, batch against alone", "<= 0.05", ("bfloat16", "batch"), ("bfloat16", "alone")),
                ("bf16 against fp32", "", ("bfloat16", "batch"), ("float32", "batch")),
            ):
                drift = _drift(scores[changed], scores[reference])
                yield base.name, f"drift of the {name}, {figure}", target, f"{drift:.4g}"


def measure_batcher(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Measure the way to the device thread and back, and the latency of clients. Wall-clock time."""
    for clients in (1, 16, 128):
        latencies = asyncio.run(_hops(clients, 2_000 // clients))
        target = "< 0.1" if clients == 1 else ""
        yield "", f"batcher alone, {clients} clients, p50 ms", target, f"{1e3 * np.median(latencies):.3f}"
    for base in bases:
        engine = BatchedBaseModel(base.source(base.depth // 2))
        conversations = base.conversations(np.full(options.prompts, 88))
        for clients in (1, 8, 32, 64, 256) if base is bases[0] or options.device != "cpu" else (1, 8, 32):
            waits, forwards = asyncio.run(_clients(engine, conversations, clients))
            p50, p99 = np.percentile(waits, [50, 99])
            ratio = (p50 - 1.0) / np.median(forwards)
            target = "<= 2" if clients <= 32 else ""  # noqa: PLR2004  # the target is about 32 clients
            yield base.name, f"{clients} clients, p50 ms", "", f"{p50:.1f}"
            yield base.name, f"{clients} clients, p99 ms", "", f"{p99:.1f}"
            yield base.name, f"{clients} clients, (p50 - 1 ms) / forward", target, f"{ratio:.2f}"
        engine.close()


def measure_growth(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Measure the cost of a token in longer texts."""
    watch = Stopwatch(options.device)
    lengths = (16, 32, 64, 128, 256, 512, 1024, 2048)
    llama = bases[1]
    source = llama.source(llama.depth // 2)
    packs = {str(n): [source.tokenize(each)[0] for each in llama.conversations(np.full(2048 // n, n))] for n in lengths}
    variants: dict[str, Callable[[], object]] = {
        n: partial(source.activations, windows) for n, windows in packs.items()
    }
    times = watch.medians(variants, options.rounds)
    cost = np.array([times[str(n)] for n in lengths])
    # A token has a fixed cost. Its attention costs in proportion to the length of its sequence.
    attention, fixed = np.polyfit(lengths, cost, 1)
    flat = (cost - attention * np.array(lengths)) / fixed
    for n, each, whole in zip(lengths, flat, cost / cost[0], strict=True):
        figure = f"cost of a token in texts of {n} tokens"
        yield llama.name, f"{figure}, less attention / fixed part", "0.9 to 1.1", f"{each:.3f}"
        yield llama.name, f"{figure} / in texts of {lengths[0]}", "", f"{whole:.2f}"


def measure_texts(bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Measure throughput and memory for growing numbers of texts.

    The model is so small that the work beside its forward pass takes as long as the pass. Growth would be visible.
    """
    watch = Stopwatch(options.device)
    folder = Path(bases[1].path) / "small"
    small = random_llama(folder, options.device, num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    engine = BatchedBaseModel(small.source(1))
    _seconds_to_read(engine, small, _CHUNK, watch)
    rates: list[float] = []
    for count in options.texts:
        # A full garbage collection comes once in some thousands of texts and takes as long as 3,000 texts here.
        times = -(-_LEAST_TEXTS // count)
        rates.append(count * times / sum(_seconds_to_read(engine, small, count, watch) for _ in range(times)))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        model, figure = f"{small.name}, 1 block of width 64", f"{count} texts of {_SHORT} tokens"
        yield model, f"{figure}, throughput / {options.texts[0]} texts", "flat", f"{rates[-1] / rates[0]:.2f}"
        yield model, f"{figure}, peak memory MiB", "flat", f"{memory:.0f}"
    engine.close()


def measure_device(_bases: Sequence[BaseModel], options: argparse.Namespace) -> Iterator[Row]:
    """Measure a GPU: its kernel against attention sequence by sequence, and the share of its peak speed."""
    if not options.device.startswith("cuda"):
        print("part device: not run, because --device names no GPU", flush=True)
        return
    yield from measure_gpu(options.device, options.rounds)


PARTS: Final = {
    "forward": measure_forward,
    "rivals": measure_rivals,
    "drift": measure_drift,
    "batcher": measure_batcher,
    "growth": measure_growth,
    "texts": measure_texts,
    "device": measure_device,
}


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def _probes(source: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> Probes:
    """Return both linear probes, with random parameters of the size of the activations."""
    spec = ProbeSpec(components=(Component(reduction="mean", outputs=("p", "eta", "e1", "e0")),))
    scale = source.activations(windows[:4]).values.float().std().item()
    rng = np.random.default_rng(0)
    shapes = spec.shapes(source.fingerprint.hidden_size)
    return Probes(
        spec, {name: rng.normal(size=shape, scale=1 / scale).astype("float32") for name, shape in shapes.items()}
    )


def _repeat(times: int, work: Callable[[], object]) -> None:
    for _ in range(times):
        work()


def _sort_and_read(source: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> None:
    source.activations(sorted(windows, key=len))


def _run_all(engine: BatchedBaseModel, conversations: Sequence[Conversation], probes: Probes) -> None:
    asyncio.run(_all(engine, conversations, probes))


async def _all(engine: BatchedBaseModel, conversations: Sequence[Conversation], probes: Probes) -> None:
    await asyncio.gather(*(engine.run(each, probes) for each in conversations))


def _tokens_seen(source: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> int:
    """Return the number of tokens, padding included, that the module computes."""
    seen: list[int] = []
    hook = source.module.register_forward_pre_hook(
        lambda _module, _arguments, options: seen.append(options["input_ids"].numel()), with_kwargs=True
    )
    source.activations(windows)
    hook.remove()
    return sum(seen)


def _last(ragged: Ragged) -> torch.Tensor:
    return torch.stack([part[-1] for part in ragged.values.float().split(ragged.lengths)])


def _scores(pooled: torch.Tensor) -> FloatArray:
    """Return 200 random linear scores of each window."""
    directions = np.random.default_rng(1).normal(size=(pooled.shape[1], 200))
    scores: FloatArray = pooled.double().cpu().numpy() @ directions
    return scores


def _drift(changed: FloatArray, reference: FloatArray) -> float:
    return float(np.sqrt(np.mean((changed - reference) ** 2)) / reference.std(axis=0).mean())


async def _hops(clients: int, calls: int) -> list[float]:
    """Return the seconds of each call of a batcher whose device does nothing."""
    batcher: MicroBatcher[int, int] = MicroBatcher(list, cost=lambda _: 1, max_batch_cost=256)
    waits: list[float] = []

    async def client() -> None:
        for _ in range(calls):
            start = time.perf_counter()
            await batcher(1)
            waits.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    batcher.close()
    return waits


async def _clients(
    engine: BatchedBaseModel, conversations: Sequence[Conversation], clients: int
) -> tuple[list[float], list[float]]:
    """Return the latency and the forward pass of each call, in ms. Each client sends its next call at once."""
    waits: list[float] = []
    forwards: list[float] = []

    async def client(number: int) -> None:
        for turn in range(4):
            start = time.perf_counter()
            reading = await engine.run(conversations[(number + turn * clients) % len(conversations)], segment_mean)
            waits.append(1e3 * (time.perf_counter() - start))
            forwards.append(reading.forward_ms)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return waits, forwards


def _seconds_to_read(engine: BatchedBaseModel, base: BaseModel, count: int, watch: Stopwatch) -> float:
    """Return the seconds to read texts as calibration does: in chunks, of which only the pooled rows are kept."""
    seconds = 0.0
    for start in range(0, count, _CHUNK):
        chunk = base.conversations(np.full(min(_CHUNK, count - start), _SHORT), seed=start)
        seconds += watch.seconds(partial(engine.run_many, chunk, segment_mean))
    return seconds


if __name__ == "__main__":
    main()
