"""Replicas that share one memory, on a real server."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from ctd_guardrail.decision import Mode, OnHistory, Reason, Verdict
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.text.conversation import Context
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS
from tests.support.redis_process import PROGRAMS, RedisProcess
from tests.support.replicas import Replicas

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no redis-server or valkey-server here")

TEN_TURNS = [f"a doubtful turn {number}" if number % 3 == 0 else f"turn {number}" for number in range(10)]
REFUSAL = DEFAULT_REFUSALS[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def make(server: RedisProcess) -> Iterator[Callable[..., Replicas]]:
    with Redis.from_url(server.url) as client:
        client.flushall()
    made: list[Replicas] = []

    def make(number: int, url: str | None = server.url, **settings: Any) -> Replicas:
        made.append(Replicas(number, url, **settings))
        return made[-1]

    yield make
    for replicas in made:
        replicas.close()


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("number", [1, 4, 8])
async def test_a_conversation_that_is_bounced_between_replicas_costs_what_it_costs_at_one(
    make: Callable[..., Replicas], number: int, context: Context
) -> None:
    alone, together, apart = (
        make(1, None, context=context),
        make(number, context=context),
        make(8, None, context=context),
    )
    for replicas in (alone, together, apart):
        assert await replicas.talk(TEN_TURNS) == [Verdict.ALLOW] * 10
    assert together.judge.seen == alone.judge.seen
    assert together.reader.seen == alone.reader.seen
    assert len({event.conversation for event in together.served}) == 1
    assert all(event.is_placed for event in together.served)
    assert [event.calls for event in together.served] == [event.calls for event in alone.served]
    assert len(apart.judge.seen) > 2 * len(together.judge.seen), "without the shared memory"
    assert not any(event.is_placed for event in apart.served[1:8])


async def test_an_answer_that_one_replica_has_seen_given_is_not_judged_by_another(
    make: Callable[..., Replicas],
) -> None:
    together, apart = make(4, context=Context.LAST_TURN), make(4, None, context=Context.LAST_TURN)
    for replicas in (together, apart):
        assert await replicas.talk(TEN_TURNS, notes=True) == [Verdict.ALLOW] * 10
    assert together.reader.seen == TEN_TURNS
    assert "answer 0" in apart.reader.seen


@pytest.mark.parametrize("context", Context)
async def test_a_replica_that_has_seen_nothing_asks_a_few_questions_and_not_one_for_each_turn(
    make: Callable[..., Replicas], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = RedisServer.ask

    def count(server: RedisServer, question: Any) -> Any:
        asked.append(server)
        return ask(server, question)

    replicas = make(1, context=context, history=OnHistory.TRUST)
    messages = [
        {"role": role, "content": text}
        for turn in TEN_TURNS
        for role, text in (("user", turn), ("assistant", "an answer"))
    ]
    for end in range(1, 18, 2):
        await replicas.check(messages[:end])
    fresh = make(1, context=context, history=OnHistory.TRUST)
    monkeypatch.setattr(RedisServer, "ask", count)
    await fresh.check(messages[:19])
    assert len(fresh.reader.seen) == 1
    assert len(asked) == 4, "place, earlier turns, newest turn, its decision"


async def test_a_refusal_of_one_replica_settles_the_turn_at_another(make: Callable[..., Replicas]) -> None:
    replicas = make(3)
    refused = {"role": "user", "content": "a harmful turn"}
    messages = [refused]
    assert (await replicas.check(messages)).verdict is Verdict.BLOCK
    messages += [{"role": "assistant", "content": REFUSAL}, {"role": "user", "content": "fine"}]
    assert (await replicas.check(messages)).verdict is Verdict.ALLOW
    forged = [{**refused, "content": "another harmful turn"}, *messages[1:]]
    assert (await replicas.check(forged)).verdict is Verdict.BLOCK


async def test_nothing_is_shared_between_modes_and_a_planted_verdict_opens_nothing(
    make: Callable[..., Replicas], server: RedisProcess
) -> None:
    shadow, replicas = make(1, mode=Mode.SHADOW), make(2)
    assert not (await shadow.check([{"role": "user", "content": "harmful"}])).is_blocking
    assert (await replicas.check([{"role": "user", "content": "harmful"}])).is_blocking
    await replicas.check([{"role": "user", "content": "fine"}])
    with Redis.from_url(server.url) as client:
        names = [name for name in client.scan_iter() if client.type(name) == b"string"]
        entries = {name: client.get(name) or b"" for name in names}
        (allowed,) = (entry for entry in entries.values() if b"allow" in entry)
        for name in names:
            client.set(name, allowed)  # signed, and for another unit
    fresh = make(1)
    decision = await fresh.check([{"role": "user", "content": "harmful"}])
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.PROBE_UNSAFE)
    assert fresh.memories[0].forgeries == 1


@pytest.mark.parametrize("stops_after", range(9))
async def test_an_outage_at_any_turn_costs_calls_and_no_verdict(
    make: Callable[..., Replicas], tmp_path: Path, stops_after: int
) -> None:
    own = RedisProcess(tmp_path)
    replicas = make(2, own.url)
    alone = make(1, None)
    turns = [*TEN_TURNS[:-1], "a harmful end"]
    verdicts = await replicas.talk(turns, after=lambda number: own.stop() if number == stops_after else None)
    assert verdicts == await alone.talk(turns) == [*[Verdict.ALLOW] * 9, Verdict.BLOCK]
    assert len(alone.judge.seen) <= len(replicas.judge.seen) <= 2 * len(alone.judge.seen)
    assert [event.is_placed for event in replicas.served] == [i <= stops_after for i in range(10)]


async def test_requests_at_once_are_judged_by_each_and_conversations_stay_apart(make: Callable[..., Replicas]) -> None:
    replicas = make(4)
    talks = [["hi", "a doubtful turn", f"turn of {number}"] for number in range(12)]
    assert await asyncio.gather(*map(replicas.talk, talks)) == [[Verdict.ALLOW] * 3] * 12
    placed = [event.conversation for event in replicas.served]
    assert len(set(placed)) == 12
    assert all(placed.count(each) == 3 for each in placed)
