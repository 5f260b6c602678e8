"""Scores and throughput of a live vLLM beside the base model in process.

Starts vLLM on an export of the policy, or uses a server that already runs. Both sides read the same texts of lognormal
length in one run. Each throughput is also printed as a ratio. Ends with a message if vLLM is not installed.

    python -m benchmarks.activations.vllm --policy policy --export served
    python -m benchmarks.activations.vllm --policy policy --export served --base-url http://127.0.0.1:8002
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import torch

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.activations.scorer import Scorer
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.errors import OverloadedError
from ctd_guardrail.policy.match import check_fingerprint
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.store import Policy, read_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.serving.record import read_record, serve_command
from ctd_guardrail.serving.vllm import open_scorer
from ctd_guardrail.text.conversation import Conversation

CONCURRENCIES: Final = (1, 8, 64, 256)
_NAME: Final = "ctd"
_START_S: Final = 900.0
_WORDS: Final = ("the", "capital", "of", "a", "river", "python", "process", "kill", "money", "letter", "how", "do", "I")


def conversations(count: int, *, seed: int = 0) -> list[Conversation]:
    """Return texts whose lengths in words are lognormal, median 60."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(60), 0.8, size=count), 3, 1500).astype(int)
    return [Conversation.from_text(" ".join(rng.choice(_WORDS, size=length))) for length in lengths]


@contextmanager
def engine(export: Path) -> Iterator[str]:
    """Start vLLM on an export, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*serve_command(read_record(export), export, name=_NAME), "--host", "127.0.0.1", "--port", str(port)]
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen(command)  # noqa: S603  # fixed words
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("vLLM did not start")
            time.sleep(1.0)
        yield address
    finally:
        process.terminate()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


async def scores(reader: Scorer, probes: Probes, texts: Sequence[Conversation]) -> FloatArray:
    """Return (p, d) of each text, shape [texts, 2]."""
    rows = [over_windows((await reader.run(text, probes)).rows) for text in texts]
    return np.stack(rows).astype(np.float64)


async def rate(
    reader: Scorer, probes: Probes, texts: Sequence[Conversation], concurrency: int
) -> tuple[float, FloatArray, float]:
    """Return texts a second, and latency and CPU time of this process for each text, in milliseconds.

    Each of ``concurrency`` clients sends its next text at once.
    """
    left = iter(texts)
    latencies: list[float] = []

    async def client() -> None:
        for text in left:
            start = time.perf_counter()
            try:
                await reader.run(text, probes)
            except OverloadedError:
                continue
            latencies.append(1e3 * (time.perf_counter() - start))

    start, spent = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    wall, spent = time.perf_counter() - start, time.process_time() - spent
    return len(latencies) / wall, np.array(latencies), 1e3 * spent / len(latencies)


def compare(policy: Policy, served: FloatArray, local: FloatArray) -> None:
    """Print the differences of the scores of both sides, and the number of routes that differ."""
    threshold = plan(policy, Budget()).rule.threshold
    for column, name in enumerate(("p", "d")):
        difference, spread = np.abs(served - local)[:, column], local[:, column].std()
        print(f"{name}: largest difference {difference.max():.2e}, mean / spread {difference.mean() / spread:.2e}")
    flips = ((served[:, 1] > threshold) != (local[:, 1] > threshold)).sum()
    print(f"routes that differ: {flips} of {len(local)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare a vLLM with the base model in process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="folder that ctd-calibrate run wrote")
    parser.add_argument("--export", type=Path, required=True, help="folder that ctd-guardrail export wrote")
    parser.add_argument("--base-url", help="a running vLLM that serves the export as ctd; without it, one is started")
    parser.add_argument("--texts", type=int, default=2048, help="texts for each concurrency")
    parser.add_argument("--device", default="auto", help="torch device of the base model in process")
    options = parser.parse_args(arguments)
    if options.base_url is None and shutil.which("vllm") is None:
        raise SystemExit("vLLM is not on this machine, and no --base-url names one elsewhere: nothing was measured")
    policy = read_policy(options.policy)
    if options.base_url is not None:
        measure(policy, options, options.base_url)
        return
    with engine(options.export) as address:
        measure(policy, options, address)


def measure(policy: Policy, options: argparse.Namespace, address: str) -> None:
    """Compare both sides and print the tables."""
    manifest, probes = policy.manifest, Probes(policy.manifest.probe, policy.probe)
    section = {"type": "vllm", "base_url": address, "model": _NAME, "export": options.export.absolute()}
    section["timeout_s"] = 120
    served = open_scorer(VllmSourceConfig.model_validate(section), manifest, probes, folder=Path())
    local = load_base_model(manifest.activations, device=options.device)
    check_fingerprint(manifest, local.fingerprint)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{dt.datetime.now(dt.UTC):%d %B %Y}, {device}, torch {torch.__version__}, {manifest.activations.model}")
    # Probes move to the device of the activations that they read, so each side has its own.
    beside = Probes(manifest.probe, policy.probe)
    few = conversations(min(options.texts, 256), seed=1)
    both = (asyncio.run(scores(served, probes, few)), asyncio.run(scores(local, beside, few)))
    compare(policy, *both)
    sides = " | ".join(f"{side}, texts/s | p50 ms | p99 ms | own CPU ms" for side in ("vLLM", "in process"))
    print(f"\n| clients | {sides} | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for concurrency in CONCURRENCIES:
        texts = conversations(options.texts, seed=concurrency)
        cells, rates = [], []
        for reader, head in ((served, probes), (local, beside)):
            asyncio.run(rate(reader, head, texts[: len(texts) // 8], concurrency))  # warm
            texts_a_second, latencies, cpu_ms = asyncio.run(rate(reader, head, texts, concurrency))
            rates.append(texts_a_second)
            p50, p99 = np.quantile(latencies, [0.5, 0.99])
            cells.append(f"{texts_a_second:.0f} | {p50:.1f} | {p99:.1f} | {cpu_ms:.2f}")
        print(f"| {concurrency} | {' | '.join(cells)} | {rates[0] / rates[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
