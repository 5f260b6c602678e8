"""The benchmark of the guard beside its bare forward pass measures what it says it does."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import simulate
from benchmarks.load.compare import Constants, replay
from benchmarks.load.serving import Bench, padding, saturated, texts
from ctd_guardrail.decision import Route


@pytest.fixture(scope="module")
def bench(tiny_bert: Path) -> Bench:
    return Bench.build(str(tiny_bert), 1, alpha=0.2)


def test_every_text_is_asked_once_and_a_share_of_them_goes_to_the_expert(bench: Bench) -> None:
    requests = [text[:80] for text in itertools.islice(texts(), 60)]
    assert len(set(requests)) == 60
    bench.batches.clear()
    served = asyncio.run(bench.closed(requests, clients=8))
    assert sorted(each.text for each in served) == sorted(requests)
    assert sum(tokens for tokens, _, _ in bench.batches) == sum(map(bench.tokens, requests))
    assert 0 < sum(each.decision.route is Route.EXPERT for each in served) < 60


def test_what_was_measured_is_what_is_simulated(bench: Bench) -> None:
    requests = [text[:80] for text in itertools.islice(texts(), 30)]
    at = simulate.poisson(500.0, 30, seed=0).at
    served = asyncio.run(bench.open(requests, at))
    assert [each.text for each in served] == requests
    costs = simulate.Costs(1e-4, 1e-4, 1e-3, 1e-5)
    delegated, measured, simulated, ends = replay(bench, served, costs)
    assert delegated.tolist() == [each.decision.route is Route.EXPERT for each in served]
    assert (measured > 0).all()
    assert np.isfinite(simulated).all()
    # Both wait for the same expert.
    assert min(measured[delegated].min(), simulated[delegated].min()) > 0.02
    assert min(ends) >= served[-1].at - served[0].at


def test_constants_come_from_batches_of_all_sizes(tiny_bert: Path) -> None:
    clock = (0.002, 0.0001)
    constants = Constants(Bench.build(str(tiny_bert), 1, alpha=0.0, clock=clock), (text[:80] for text in texts()))
    constants.measure()
    costs = constants.costs()
    assert costs.before_s == costs.after_s > 0
    # A device never takes less than the clock says.
    assert costs.batch_s + 80 * costs.token_s > 0.5 * (clock[0] + 80 * clock[1])


def test_packed_batches_hold_no_padding_and_ratios_are_printed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.serving.texts", lambda: (text[:80] for text in texts()))
    assert padding(bench, count=20) == (64, "padded / real tokens", "1.000")
    ratios = {str(figure): float(str(value)) for _, figure, value in saturated(bench, rounds=2, count=10)}
    for clock in ("clock", "processor time"):
        lowest, median, highest = (
            ratios[f"throughput / bare forward, {clock}, {figure}"] for figure in ("lowest", "median", "highest")
        )
        assert 0 < lowest <= median <= highest
