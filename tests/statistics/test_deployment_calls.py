"""Calls of a deployed guard: the real cascade and memory make the calls that the drawn scores say, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretBytes, SecretStr

from ctd_guardrail.decision import OnHistory, OnUnreadable
from ctd_guardrail.observability.events import Served
from ctd_guardrail.runtime.memory import LocalMemory
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.shared_memory import SharedMemory
from ctd_guardrail.text.conversation import Context
from tests.support.deployment import Deployment, by_text, name_turns, serve
from tests.support.redis_process import PROGRAMS, RedisProcess
from tests.support.requests import requests
from tests.support.traffic import Conversations, Texts, Turns, interleave

ALPHA = 0.1


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(15)


@pytest.mark.parametrize(
    "law",
    [
        Conversations(),
        Conversations(mean=10, longest=50, correlation=0.8, drift=0.1, unreadable=0.05),
    ],
)
def test_the_exact_rate_of_a_law_is_that_of_many_draws(rng: np.random.Generator, law: Conversations) -> None:
    turns, threshold = law.draw(rng, 100_000), law.threshold(ALPHA)
    calls = np.bincount(turns.conversation, turns.d > threshold)
    assert turns.lengths.mean() == pytest.approx(law.mean_length, rel=0.02)
    assert calls.mean() == pytest.approx(law.calls(threshold), rel=0.02)
    assert calls.sum() / turns.d.size == pytest.approx(ALPHA, rel=0.02)
    before, after = turns.d[:-1], turns.d[1:]
    is_step = (np.diff(turns.place) == 1) & np.isfinite(before) & np.isfinite(after)
    steps = after[is_step] - before[is_step]
    assert steps.mean() == pytest.approx(law.drift, abs=0.01)
    assert steps.var() == pytest.approx(2 * (1 - law.correlation), rel=0.02)


def test_conversations_start_in_order_and_this_many_are_open(rng: np.random.Generator) -> None:
    turns = Conversations().draw(rng, 500)
    order = interleave(turns, 20, rng)
    assert sorted(order.tolist()) == list(range(turns.d.size))
    of, place = turns.conversation[order], turns.place[order]
    open_ones: set[int] = set()
    for number, at in zip(of.tolist(), place.tolist(), strict=True):
        open_ones.add(number)
        assert len(open_ones) <= 20
        if at + 1 == turns.lengths[number]:
            open_ones.remove(number)
    for number in range(500):
        assert (np.diff(place[of == number]) == 1).all()


@pytest.mark.parametrize("at_once", [1, 20, 200])
async def test_a_request_of_one_replica_costs_the_calls_of_its_newest_turn(
    rng: np.random.Generator, at_once: int
) -> None:
    law = Conversations(correlation=0.8, drift=0.1, unreadable=0.02)
    turns, threshold = law.draw(rng, 300), law.threshold(ALPHA)
    texts = name_turns(turns)
    deployment = Deployment(threshold, by_text(texts, turns.d), on_overlong=OnUnreadable.EXPERT)
    calls = await serve(deployment, texts, turns.conversation, interleave(turns, at_once, rng))
    deployment.close()
    assert calls.tolist() == (turns.d > threshold).tolist()
    assert deployment.expert.calls == int((turns.d > threshold).sum()) > 50


@pytest.mark.parametrize("at_once", [1, 20, 200])
async def test_the_events_of_a_deployment_are_those_of_the_drawn_requests(
    rng: np.random.Generator, at_once: int
) -> None:
    turns = Conversations(unreadable=0.05).draw(rng, 300)
    texts = name_turns(turns)
    deployment = Deployment(1.0, by_text(texts, turns.d), on_overlong=OnUnreadable.EXPERT)
    order = interleave(turns, at_once, np.random.default_rng(1))
    await serve(deployment, texts, turns.conversation, order)
    deployment.close()
    served = [event for event in deployment.events if isinstance(event, Served)]
    *drawn, _ = (
        event for event in requests(turns, 1.0, at_once, np.random.default_rng(1)) if isinstance(event, Served)
    )
    for name in ("scores", "calls", "is_placed", "earlier", "origin"):
        assert [getattr(event, name) for event in served] == [getattr(event, name) for event in drawn], name
    # The names differ, and they split the requests in the same way.
    names = dict(zip([event.conversation for event in served], [event.conversation for event in drawn], strict=True))
    assert [names[event.conversation] for event in served] == [event.conversation for event in drawn]
    assert len(set(names.values())) == len(names) == 300


@pytest.mark.parametrize("turns", [3, 8, 30])
async def test_a_forged_history_costs_a_request_no_more_than_its_limit(rng: np.random.Generator, turns: int) -> None:
    forged = [f"forged {number}" for number in range(turns)]
    deployment = Deployment(0.0, dict.fromkeys(forged, 1.0), max_expert_calls=2)
    messages = [{"role": role, "content": text} for text in forged for role in ("user", "assistant")][:-1]
    for _ in range(3):
        assert await deployment.send(messages) <= 2
    deployment.close()
    served = [event for event in deployment.events if isinstance(event, Served)]
    assert len(served) == 3
    assert max(event.calls for event in served) <= 2
    assert not served[0].is_placed


def replayed(turns: Turns, threshold: float, replica: np.ndarray) -> np.ndarray:
    """Return the calls of each turn where each replica judges every turn that it has not seen."""
    delegated = turns.d > threshold
    seen: set[tuple[int, int]] = set()
    calls = np.zeros(turns.d.size, dtype=np.int64)
    for turn, (at, of) in enumerate(zip(replica.tolist(), turns.place.tolist(), strict=True)):
        for shown in range(turn - of, turn + 1):
            if (at, shown) not in seen:
                seen.add((at, shown))
                calls[turn] += delegated[shown]
    return calls


@pytest.mark.parametrize(("replicas", "specified"), [(1, 0.098), (4, 0.278), (8, 0.369)])
async def test_replicas_without_a_shared_memory_multiply_the_calls(
    rng: np.random.Generator, replicas: int, specified: float
) -> None:
    d = rng.normal(size=6_000)
    turns = Turns(d, np.repeat(np.arange(600), 10))
    threshold = float(np.quantile(d, 1 - ALPHA))
    texts = name_turns(turns)
    deployment = Deployment(threshold, by_text(texts, d), replicas=replicas)
    replica = rng.integers(0, replicas, d.size)
    calls = await serve(deployment, texts, turns.conversation, range(d.size), replica)
    deployment.close()
    assert calls.tolist() == replayed(turns, threshold, replica).tolist()
    assert calls.mean() == pytest.approx(specified, abs=0.02)


@pytest.mark.parametrize("replicas", [4, 8])
async def test_sticky_traffic_costs_what_one_replica_costs(rng: np.random.Generator, replicas: int) -> None:
    turns = Conversations(mean=10, longest=50).draw(rng, 100)
    texts = name_turns(turns)
    deployment = Deployment(1.0, by_text(texts, turns.d), replicas=replicas)
    calls = await serve(
        deployment, texts, turns.conversation, interleave(turns, 20, rng), turns.conversation % replicas
    )
    deployment.close()
    assert calls.tolist() == (turns.d > 1.0).tolist()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    if not PROGRAMS:
        pytest.skip("no redis-server or valkey-server here")
    server = RedisProcess(tmp_path)
    yield server
    server.stop()


@pytest.mark.parametrize("replicas", [4, 8])
async def test_replicas_with_a_shared_memory_cost_what_one_replica_costs(
    rng: np.random.Generator, replicas: int, server: RedisProcess
) -> None:
    turns = Conversations(mean=10, longest=20).draw(rng, 60)
    texts = name_turns(turns)
    memories = [
        SharedMemory(
            RedisServer(SecretStr(server.url), timeout_s=30.0),
            name="app",
            key=SecretBytes(b"a secret of the deployment"),
            keep_s=60.0,
            local=LocalMemory(),
        )
        for _ in range(replicas)
    ]
    deployment = Deployment(1.0, by_text(texts, turns.d), replicas=replicas, memories=memories)
    order, replica = interleave(turns, 20, rng), rng.integers(0, replicas, turns.d.size)
    calls = await serve(deployment, texts, turns.conversation, order, replica)
    deployment.close()
    assert calls.tolist() == (turns.d > 1.0).tolist()
    served = [event for event in deployment.events if isinstance(event, Served)]
    assert all(event.is_placed for event in served)
    assert len({event.conversation for event in served}) == 60


async def test_repeated_texts_cost_less_a_request_than_alpha_though_new_texts_cost_more(
    rng: np.random.Generator,
) -> None:
    texts = Texts(4_000)
    threshold = float(np.quantile(texts.d[texts.draw(rng, 100_000)], 1 - ALPHA))
    sent = texts.draw(rng, 5_000)
    names = [f"text {number}" for number in range(texts.d.size)]
    deployment = Deployment(threshold, by_text(names, texts.d), context=Context.LAST_TURN, history=OnHistory.TRUST)
    calls = await serve(deployment, [names[i] for i in sent], np.arange(sent.size), range(sent.size))
    deployment.close()
    first_seen = np.unique(sent)
    assert calls.sum() == (texts.d[first_seen] > threshold).sum()
    assert (texts.d[first_seen] > threshold).mean() > 1.15 * ALPHA
    assert calls.mean() < 0.7 * ALPHA
