"""The simulation loses nothing, batches as the batcher does, and agrees with queueing theory where it has an answer."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.simulate import Costs, Requests, extrapolate, poisson, simulate
from ctd_guardrail.activations.batcher import MicroBatcher
from tests.support.waiting import wait_until

FREE = Costs(0.0, 0.0, 0.0, 0.0)


def _arrivals(rate: float, count: int) -> Requests:
    requests = poisson(rate, count, seed=1)
    return replace(requests, tokens=np.ones(count, np.int64), delegated=np.zeros(count, np.bool_))


@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(1, 3000),
    replicas=st.integers(1, 4),
    slots=st.integers(1, 8),
    limit=st.integers(1, 5000),
)
def test_every_request_is_screened_once_and_gets_one_verdict(
    seed: int, rate: float, replicas: int, slots: int, limit: int
) -> None:
    requests = poisson(rate, 200, seed=seed, alpha=0.3)
    costs = Costs(1e-4, 1e-4, 2e-3, 1e-5, max_batch_tokens=limit)
    got = simulate(requests, costs, replicas=replicas, expert_slots=slots)
    assert sorted(i for batch in got.batches for i in batch) == list(range(200))
    least = 2e-4 + 2e-3 + 1e-5 * requests.tokens + np.where(requests.delegated, requests.expert_s, 0.0)
    assert (got.latency >= least - 1e-9).all()
    assert all(len(batch) == 1 or requests.tokens[batch].sum() <= limit for batch in got.batches)
    assert got.busy_s == pytest.approx(2e-3 * len(got.batches) + 1e-5 * requests.tokens.sum())
    assert got.busy_s <= replicas * got.end
    assert got.end == pytest.approx((requests.at + got.latency).max())


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_fixed_service_waits_as_long_as_pollaczek_and_khinchine_say(load: float) -> None:
    service, count = 0.01, 100_000
    got = simulate(_arrivals(load / service, count), replace(FREE, batch_s=service, max_batch_tokens=1))
    wait = got.latency.mean() - service
    # Queues are correlated over about 1 / (1 - load)^2 services: that many fewer independent waits.
    error = 5 * (got.latency.std() / math.sqrt(count)) * 2 / (1 - load)
    assert wait == pytest.approx(load * service / (2 * (1 - load)), abs=error)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_whatever_the_order_the_work_that_waits_is_that_of_an_exponential_queue(load: float) -> None:
    mean, count = 0.01, 100_000
    requests = _arrivals(load / mean, count)
    lengths = np.random.default_rng(2).exponential(1e6, count).astype(np.int64)
    got = simulate(replace(requests, tokens=lengths), replace(FREE, token_s=mean / 1e6, max_batch_tokens=1))
    # Kleinrock's conservation law: the short ones may overtake, the sum of service times their waits stays.
    service = lengths * mean / 1e6
    waiting = (load / mean) * service * (got.latency - service)
    error = 5 * (waiting.std() / math.sqrt(count)) * 2 / (1 - load)
    assert waiting.mean() == pytest.approx(load**2 * mean / (1 - load), abs=error)
    assert error < 0.5 * waiting.mean()


@pytest.mark.parametrize(("slots", "load"), [(2, 0.5), (8, 0.7)])
def test_calls_of_the_expert_wait_as_long_as_erlang_c_says(slots: int, load: float) -> None:
    service, count = 0.2, 100_000
    requests = _arrivals(slots * load / service, count)
    answers = np.random.default_rng(3).exponential(service, count)
    requests = replace(requests, delegated=np.ones(count, np.bool_), expert_s=answers)
    got = simulate(requests, FREE, expert_slots=slots)
    offered = slots * load
    last = offered**slots / math.factorial(slots) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(slots)) + last)
    expected = waits * service / (slots * (1 - load))
    error = 5 * (got.latency - answers).std() / math.sqrt(count) * 2 / (1 - load)
    assert got.latency.mean() - answers.mean() == pytest.approx(expected, abs=error)


def test_batches_are_those_of_the_batcher() -> None:
    tokens = np.random.default_rng(0).integers(1, 300, 200)
    batches: list[list[int]] = []
    gate = threading.Event()

    def run(items: Sequence[int]) -> Sequence[int]:
        gate.wait()
        batches.append(list(items))
        return items

    batcher = MicroBatcher(run, cost=lambda i: int(tokens[i]), max_batch_cost=500)
    first = batcher.submit(0)
    wait_until(first.running, every_s=0.0)
    futures = batcher.submit_all(range(1, 200))
    gate.set()
    for future in (first, *futures):
        future.result()
    batcher.close()
    # The first is on the device when all others arrive.
    at = np.concatenate([[0.0], np.full(199, 1e-3)])
    nobody = np.zeros(200, np.bool_)
    got = simulate(Requests(at, tokens, nobody, at), replace(FREE, batch_s=1.0, max_batch_tokens=500))
    assert got.batches == batches


def test_more_replicas_wait_less_and_the_table_says_so() -> None:
    costs = Costs(5e-5, 5e-5, 2e-3, 1e-5)
    requests = poisson(1500, 10_000, seed=0)
    one, four = (simulate(requests, costs, replicas=count) for count in (1, 4))
    assert one.percentile(0.99) > 2 * four.percentile(0.99)
    table = extrapolate(costs, per_second=1500, replicas=[4], alpha=0.1, count=5_000).splitlines()
    assert len(table) == 3
    assert table[2].startswith("| 4 | 0.")


@pytest.mark.slow
def test_the_page_on_scaling_shows_what_the_simulation_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\| \d+ \| [\d,.]+ \| [\d,.]+ \| [\d,]+ \|$", page, flags=re.MULTILINE))
    printed = []
    for replicas, batch_s, token_s in (((18, 20, 24, 32, 48), 4e-3, 17.6e-6), ((5, 6, 8, 12), 2e-3, 2.47e-6)):
        costs = Costs(2.5e-4, 2.5e-4, batch_s, token_s)
        rows = extrapolate(costs, per_second=1e9 / 86_400, replicas=replicas, alpha=0.0).splitlines()[2:]
        printed += [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert shown == {f"| {n} | {_short(p50)} | {_short(p99)} | {tokens} |" for n, _, p50, p99, tokens, _ in printed}


def _short(milliseconds: str) -> str:
    value = float(milliseconds)
    return f"{value:,.0f}" if value >= 9.5 else f"{value:.1f}"
