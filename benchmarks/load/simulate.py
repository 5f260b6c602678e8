"""Discrete-event simulation of requests through replicas of the rail and an expert, with measured costs.

Arrivals -> event loop (tokenise) -> micro-batcher -> device at a + b * tokens a batch -> event loop -> for delegated
requests, an expert with a limit of concurrent calls. The command simulates replicas and devices that this machine does
not have; ``docs/scaling.md`` has the results. ``benchmarks.load.compare`` compares the simulation with this machine.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.activations.fair_queue import FairQueue

__all__ = ["Costs", "Outcome", "Requests", "poisson", "simulate"]


_ARRIVED, _QUEUED, _FORWARDED, _SCREENED, _ANSWERED = range(5)
_SIZES: Final = (4.16, 0.8)  # mean and spread of the logarithm of a request's tokens: mean 88 tokens


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost of a request in one replica, in seconds.

    Attributes:
        before_s: Time of the event loop before the queue: reading the request, tokenising it.
        after_s: Time of the event loop after the forward pass.
        batch_s: Fixed time of the device for a batch.
        token_s: Time of the device for each token.
        max_batch_tokens: Limit of the batcher: a batch is closed before it exceeds this.
    """

    before_s: float
    after_s: float
    batch_s: float
    token_s: float
    max_batch_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that arrive.

    Attributes:
        at: Times of arrival in seconds, ascending, shape [n].
        tokens: Tokens of each request, shape [n].
        delegated: Whether a request goes to the expert, shape [n].
        expert_s: The expert's seconds for a delegated request, shape [n].
    """

    at: FloatArray
    tokens: IntArray
    delegated: BoolArray
    expert_s: FloatArray


@dataclass(slots=True)
class Outcome:
    """Result of a simulation.

    Attributes:
        latency: Seconds from arrival to verdict, shape [n].
        batches: Requests of each batch, in the order in which the batches began.
        busy_s: Working seconds of all devices.
        end: Time of the last verdict.
    """

    latency: FloatArray
    batches: list[list[int]] = field(default_factory=list)
    busy_s: float = 0.0
    end: float = 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return 1000 * float(np.percentile(self.latency, 100 * share))


@dataclass(slots=True)
class _Replica:
    loop_free: float = 0.0
    queue: FairQueue[int] = field(default_factory=FairQueue)
    is_busy: bool = False
    inside: int = 0


class _Run:
    def __init__(self, requests: Requests, costs: Costs, replicas: int, expert_slots: int) -> None:
        self.requests = requests
        self.costs = costs
        self.replicas = [_Replica() for _ in range(replicas)]
        self.slots = expert_slots
        self.waiting: deque[int] = deque()
        self.home: dict[int, _Replica] = {}
        self.outcome = Outcome(np.full(requests.at.size, np.nan))
        self.events: list[tuple[float, int, int, int | list[int]]] = []
        self.numbers = itertools.count()

    def push(self, at: float, kind: int, what: int | list[int]) -> None:
        heapq.heappush(self.events, (at, next(self.numbers), kind, what))

    def run(self) -> Outcome:
        for i, at in enumerate(self.requests.at.tolist()):
            self.push(at, _ARRIVED, i)
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            if isinstance(what, list):
                self.forwarded(now, what)
            elif kind == _ARRIVED:
                self.arrived(now, what)
            elif kind == _QUEUED:
                self.home[what].queue.push(what, int(self.requests.tokens[what]))
                self.start(now, self.home[what])
            elif kind == _SCREENED and self.requests.delegated[what]:
                self.waiting.append(what)
                self.call(now)
            else:
                self.answered(now, what, was_delegated=kind == _ANSWERED)
        return self.outcome

    def arrived(self, now: float, i: int) -> None:
        # The balancer knows the number of requests in each replica.
        replica = min(self.replicas, key=lambda each: each.inside)
        replica.inside += 1
        self.home[i] = replica
        self.on_loop(now, replica, self.costs.before_s, _QUEUED, i)

    def on_loop(self, now: float, replica: _Replica, seconds: float, kind: int, i: int) -> None:
        replica.loop_free = max(now, replica.loop_free) + seconds
        self.push(replica.loop_free, kind, i)

    def start(self, now: float, replica: _Replica) -> None:
        """Start an idle device on the batch that the batcher's own queue chooses."""
        if replica.is_busy or not replica.queue:
            return
        batch = replica.queue.take(self.costs.max_batch_tokens)
        tokens = int(self.requests.tokens[batch].sum())
        replica.is_busy = True
        seconds = self.costs.batch_s + self.costs.token_s * tokens
        self.outcome.batches.append(batch)
        self.outcome.busy_s += seconds
        self.push(now + seconds, _FORWARDED, batch)

    def forwarded(self, now: float, batch: list[int]) -> None:
        replica = self.home[batch[0]]
        replica.is_busy = False
        for i in batch:
            self.on_loop(now, replica, self.costs.after_s, _SCREENED, i)
        self.start(now, replica)

    def call(self, now: float) -> None:
        while self.slots and self.waiting:
            self.slots -= 1
            i = self.waiting.popleft()
            self.push(now + float(self.requests.expert_s[i]), _ANSWERED, i)

    def answered(self, now: float, i: int, *, was_delegated: bool) -> None:
        self.outcome.latency[i] = now - self.requests.at[i]
        self.outcome.end = now
        self.home.pop(i).inside -= 1
        if was_delegated:
            self.slots += 1
            self.call(now)


def simulate(requests: Requests, costs: Costs, *, replicas: int = 1, expert_slots: int = 64) -> Outcome:
    """Simulate the requests.

    Args:
        requests: Requests that arrive.
        costs: Costs in each replica.
        replicas: Number of replicas. A request goes to the one with the fewest requests.
        expert_slots: Limit of concurrent calls of the expert, over all replicas.
    """
    return _Run(requests, costs, replicas, expert_slots).run()


def poisson(
    rate: float, count: int, *, seed: int, alpha: float = 0.0, expert_s: float = 0.2, max_tokens: int = 2048
) -> Requests:
    """Return requests of a Poisson process with lognormal lengths, mean 88 tokens.

    Args:
        rate: Requests a second, on average.
        count: Number of requests.
        seed: Seed of all random numbers.
        alpha: Share that is delegated.
        expert_s: Median of the expert's latency, lognormal with sigma .5.
        max_tokens: Upper limit of the tokens of a request.
    """
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, count))
    tokens = np.clip(rng.lognormal(*_SIZES, count), 3, max_tokens).astype(np.int64)
    return Requests(at, tokens, rng.random(count) < alpha, expert_s * rng.lognormal(0.0, 0.5, count))


def extrapolate(costs: Costs, *, per_second: float, replicas: Sequence[int], alpha: float, count: int = 200_000) -> str:
    """Return a Markdown table: latencies by number of replicas, at one rate over all of them."""
    lines = ["| replicas | device busy | p50 ms | p99 ms | tokens a batch | verdicts a second |", "|---" * 6 + "|"]
    requests = poisson(per_second, count, seed=0, alpha=alpha)
    for number in replicas:
        got = simulate(requests, costs, replicas=number, expert_slots=10_000)
        busy = got.busy_s / (number * got.end)
        tokens = requests.tokens.sum() / len(got.batches)
        lines.append(
            f"| {number} | {busy:.2f} | {got.percentile(0.5):.1f} | {got.percentile(0.99):.1f} | {tokens:,.0f} "
            f"| {requests.at.size / got.end:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Simulate replicas and devices that this machine does not have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1e9 / 86_400, help="requests a second")
    parser.add_argument("--replicas", type=int, nargs="+", required=True)
    parser.add_argument("--batch-ms", type=float, required=True, help="a of the device, milliseconds")
    parser.add_argument("--token-us", type=float, required=True, help="b of the device, microseconds")
    parser.add_argument("--host-us", type=float, default=500.0, help="microseconds of the event loop for each request")
    parser.add_argument("--alpha", type=float, default=0.0, help="share that is delegated")
    options = parser.parse_args()
    half = options.host_us / 2e6
    costs = Costs(half, half, options.batch_ms / 1e3, options.token_us / 1e6)
    print(extrapolate(costs, per_second=options.rate, replicas=options.replicas, alpha=options.alpha))


if __name__ == "__main__":
    main()
