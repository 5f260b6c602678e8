"""Against a real server: what several processes remember together."""

import asyncio
import itertools
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretBytes, SecretStr
from redis import Redis

from ctd_guardrail.decision import Decision, Mode, Reason, Route, Timings, Verdict
from ctd_guardrail.runtime.memory import LocalMemory, Memory, Placement
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared_memory import SharedMemory
from tests.support.clocks import ManualClock
from tests.support.redis_process import PROGRAMS, RedisProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no redis-server or valkey-server here")

KEY = SecretBytes(b"a secret of the deployment")
ALLOWED = Decision(Verdict.ALLOW, Route.EXPERT, Reason.EXPERT_SAFE, 0.1 + 0.2, -1 / 3, 5e-324)
BLOCKED = Decision(Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE, 0.9, 0.1, mode=Mode.SHADOW)


@pytest.fixture(scope="module", params=PROGRAMS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"), request.param)
    yield server
    server.stop()


@pytest.fixture
def store(server: RedisProcess) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


def replica(
    server: RedisProcess, *, key: SecretBytes = KEY, name: str = "app", keep_s: float = 60.0, **parts: Any
) -> SharedMemory:
    """Return the memory of a process of its own, as far as memories are concerned."""
    asked = RedisServer(SecretStr(server.url), timeout_s=parts.pop("timeout_s", 30.0))
    return SharedMemory(asked, name=name, key=key, keep_s=keep_s, local=LocalMemory(), **parts)


async def test_a_decision_of_one_replica_is_remembered_by_all(server: RedisProcess, store: Redis) -> None:
    one, other = replica(server), replica(server)
    assert await one.recall("key", "unit") is None
    await one.remember("key", "unit", ALLOWED)
    await one.remember("key", "second", BLOCKED)
    assert await other.recall("key", "unit") == ALLOWED
    assert await other.recall("key", "second") == BLOCKED
    assert await other.recall("another key", "unit") is None
    assert await other.recall("key", "another unit") is None
    assert await replica(server, name="another app").recall("key", "unit") is None
    store.flushall()
    assert await other.recall("key", "unit") == ALLOWED, "the process itself is asked first"


async def test_times_and_receipts_are_not_shared_and_failures_are_not_remembered(
    server: RedisProcess, store: Redis
) -> None:
    one, other = replica(server), replica(server)
    await one.remember("key", "unit", Decision(Verdict.BLOCK, Route.PROBE, Reason.DEADLINE))
    assert await other.recall("key", "unit") is None
    assert store.dbsize() == 0
    await one.remember("key", "unit", Decision(*ALLOWED_FIELDS, timings=Timings(1, 2, 3), receipt="receipt"))
    assert await other.recall("key", "unit") == Decision(*ALLOWED_FIELDS)


ALLOWED_FIELDS = (Verdict.ALLOW, Route.PROBE, Reason.PROBE_SAFE, 0.25, -0.5)

scores = st.none() | st.floats(0, 1)
decisions = st.builds(
    Decision,
    st.sampled_from(Verdict),
    st.sampled_from(Route),
    st.sampled_from([reason for reason in Reason if not reason.is_failure]),
    scores,
    st.none() | st.floats(-1, 1),
    scores,
    st.sampled_from(Mode),
)


@given(decision=decisions)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_judgement_comes_back_as_it_was(server: RedisProcess, decision: Decision) -> None:
    async def bounce() -> Decision | None:
        await one.remember("key", unit, decision)
        return await other.recall("key", unit)

    unit = secrets.token_hex(8)
    one, other = replica(server), replica(server)
    assert asyncio.run(bounce()) == decision


async def test_the_store_holds_no_text_and_no_hash_that_can_be_tested_without_the_key(
    server: RedisProcess, store: Redis
) -> None:
    await replica(server).remember("judgement-key", "unit-digest", ALLOWED)
    await replica(server).place([b"first-digest"], b"now-digest")
    await replica(server, key=SecretBytes(b"another secret of the same length")).remember(
        "judgement-key", "unit-digest", ALLOWED
    )
    keys = sorted(store.keys())
    assert len(keys) == 4
    held = b" ".join([*keys, *(store.get(key) or b"" for key in keys if store.type(key) == b"string")])
    assert not any(word in held for word in (b"judgement", b"unit-digest", b"first", b"now-digest"))
    assert all(0 < store.pttl(key) <= 60_000 for key in keys), "every key ends"


def planted(entry: bytes, others: dict[bytes, bytes]) -> Iterator[bytes]:
    yield from (b"", b"x", entry[:-1], entry + b" ", entry[:16], b"\0" * 16 + entry[16:])
    yield entry.replace(b"block", b"allow")
    yield from others.values()
    for place in range(len(entry)):
        yield entry[:place] + bytes([entry[place] ^ 1]) + entry[place + 1 :]


async def test_a_planted_or_changed_entry_is_not_remembered(
    server: RedisProcess, store: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one = replica(server)
    await one.remember("key", "unit", BLOCKED)
    (name,) = store.keys()
    entry = store.get(name)
    await one.remember("key", "another unit", ALLOWED)
    await replica(server, key=SecretBytes(b"the secret of someone else")).remember("key", "unit", ALLOWED)
    others = {key: store.get(key) for key in store.scan_iter() if key != name}
    assert len(others) == 2
    for wrong in planted(entry, others):
        store.set(name, wrong)
        reader = replica(server)
        assert await reader.recall("key", "unit") is None, wrong
        assert reader.forgeries == 1
    assert "did not write" in caplog.text
    store.delete(name)
    store.rpush(name, entry)
    reader = replica(server)
    assert await reader.recall("key", "unit") is None, "an entry of another type"
    await reader.remember("key", "unit", BLOCKED)
    assert await replica(server).recall("key", "unit") == BLOCKED, "judged again, and written over"


async def test_an_answer_of_the_main_llm_is_known_to_all(server: RedisProcess, store: Redis) -> None:
    one, other = replica(server), replica(server)
    assert not await other.knows_answer("answer")
    one.note_answer("answer")
    await eventually(store.dbsize)
    assert await other.knows_answer("answer")
    assert await one.knows_answer("answer")
    assert not await other.knows_answer("another answer")
    (name,) = store.scan_iter()
    assert 0 < store.pttl(name) <= 60_000
    for planted_entry in (b"", b"x" * 16, (store.get(name) or b"") + b" "):
        store.set(name, planted_entry)
        reader = replica(server)
        assert not await reader.knows_answer("answer")
        assert reader.forgeries == 1
    store.flushall()
    assert await other.knows_answer("answer"), "the process itself is asked first"


async def test_an_answer_is_no_judgement_and_a_judgement_no_answer(server: RedisProcess, store: Redis) -> None:
    memory = replica(server)
    await memory.remember("key", "digest", ALLOWED)
    (judgement,) = store.scan_iter()
    memory.note_answer("digest")
    await eventually(lambda: store.dbsize() == 2)
    (answer,) = (name for name in store.scan_iter() if name != judgement)
    entries = store.get(judgement) or b"", store.get(answer) or b""
    store.mset({judgement: entries[1], answer: entries[0]})
    assert await replica(server).recall("key", "digest") is None
    assert not await replica(server).knows_answer("digest")


async def test_several_decisions_are_fetched_in_one_question(server: RedisProcess, store: Redis) -> None:
    one, other = replica(server), replica(server)
    units = [f"unit {number}" for number in range(20)]
    for unit in units:
        await one.remember("key", unit, ALLOWED)
    await other.prefetch("key", lambda: [*units, "unknown"])
    store.flushall()
    assert [await other.recall("key", unit) for unit in units] == [ALLOWED] * 20
    assert await other.recall("key", "unknown") is None


async def test_an_entry_ends(server: RedisProcess, store: Redis) -> None:
    await replica(server, keep_s=0.05).remember("key", "unit", ALLOWED)
    await asyncio.sleep(0.1)
    assert await replica(server).recall("key", "unit") is None
    assert (await replica(server, keep_s=0.05).place([], b"hi")).is_placed
    await asyncio.sleep(0.1)
    assert not (await replica(server).place([b"hi"], b"hi there")).is_placed
    assert store.dbsize() == 2


# Digests of a conversation's turns, oldest first; the last one is the request's own.
Turns = tuple[bytes, ...]


async def place(memory: Memory, *turns: bytes) -> Placement:
    return await memory.place(turns[:-1], turns[-1])


async def test_each_turn_of_a_conversation_gets_its_name_at_any_replica(server: RedisProcess, store: Redis) -> None:
    replicas = [replica(server) for _ in range(3)]
    turns: list[bytes] = []
    placements = []
    for number in range(10):
        turns.append(f"turn {number}".encode())
        placements.append(await place(replicas[number % 3], *turns))
    assert len({placement.conversation for placement in placements}) == 1
    assert all(placement.is_placed for placement in placements)
    assert len({placement.digest for placement in placements}) == 10
    assert (
        (await place(replicas[0], *turns)).digest == placements[-1].digest == (await place(replicas[1], *turns)).digest
    )


steps = st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=5), max_size=25)


@given(requests=steps)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_places_requests_as_the_memory_of_one_process_does(
    server: RedisProcess, requests: list[list[bytes]]
) -> None:
    async def placed(memories: list[Memory]) -> list[tuple[int, bool]]:
        names: dict[str, int] = {}
        found = []
        for request, memory in zip(requests, itertools.cycle(memories), strict=False):
            turns = [b"/".join(request[: i + 1]) for i in range(len(request))]
            placement = await place(memory, *turns)
            found.append((names.setdefault(placement.conversation, len(names)), placement.is_placed))
        return found

    name = secrets.token_hex(8)
    shared: list[Memory] = [replica(server, name=name) for _ in range(2)]
    assert asyncio.run(placed(shared)) == asyncio.run(placed([LocalMemory()]))


async def test_conversations_that_begin_alike_at_once_keep_their_number_of_turns(
    server: RedisProcess, store: Redis
) -> None:
    replicas = [replica(server) for _ in range(4)]
    seen: Counter[str] = Counter()
    for length in range(1, 4):
        turns = [b"hi", b"how are you", b"bye"][:length]
        placements = await asyncio.gather(*(place(replicas[i % 4], *turns) for i in range(40)))
        assert all(placement.is_placed for placement in placements)
        seen.update(placement.conversation for placement in placements)
    assert seen == dict.fromkeys(seen, 3)
    assert len(seen) == 40


async def test_names_that_wait_are_bounded(server: RedisProcess, store: Redis) -> None:
    memory = replica(server)
    for _ in range(1_030):
        await place(memory, b"hi")
    (waiting,) = (key for key in store.scan_iter() if store.type(key) == b"list")
    assert store.llen(waiting) == 1_024


@pytest.mark.parametrize("planted_name", [b"\xff\xfe", b"", b"a name", b"f" * 33])
async def test_a_planted_name_of_a_conversation_is_not_used(
    server: RedisProcess, store: Redis, planted_name: bytes
) -> None:
    memory = replica(server)
    await place(memory, b"hi")
    (waiting,) = (key for key in store.scan_iter() if store.type(key) == b"list")
    store.delete(waiting)
    store.rpush(waiting, planted_name)
    placement = await place(memory, b"hi", b"there")
    assert not placement.is_placed
    assert len(placement.conversation) == 32
    assert memory.forgeries == 1


async def test_without_the_server_a_process_remembers_by_itself_and_the_place_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server, clock = RedisProcess(tmp_path), ManualClock()
    one, other = replica(server, clock=clock), replica(server, clock=(later := ManualClock()))
    await one.remember("key", "before", ALLOWED)
    first = await place(one, b"hi")
    server.stop()
    await one.remember("key", "unit", BLOCKED)
    assert one.outages == 1
    assert await one.recall("key", "unit") == BLOCKED
    assert await one.recall("key", "before") == ALLOWED
    assert await other.recall("key", "before") is None
    placements = [await place(one, b"hi"), await place(one, b"hi", b"there")]
    assert not any(placement.is_placed for placement in placements)
    assert placements[0].conversation == placements[1].conversation != first.conversation
    assert one.outages == 1, "the server is left alone"
    server.start()
    assert await other.recall("key", "unit") is None
    clock.now += 10.0
    await one.remember("key", "unit", BLOCKED)
    assert await other.recall("key", "unit") is None, "it is left alone there still"
    later.now += 10.0
    assert await other.recall("key", "unit") == BLOCKED
    assert (await place(one, b"hi")).is_placed
    server.stop()
    assert (one.outages, other.outages) == (1, 1)
    assert caplog.text.count("remembers by itself") == caplog.text.count("answers again") == 2
    assert str(server.port) not in caplog.text


async def test_a_server_that_says_nothing_delays_one_request_and_no_other() -> None:
    clock = ManualClock()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = RedisServer(SecretStr(f"redis://127.0.0.1:{silent.getsockname()[1]}/0"), timeout_s=0.05)
        memory = SharedMemory(asked, name="app", key=KEY, keep_s=60, local=LocalMemory(), clock=clock)
        for _ in range(20):
            assert await memory.recall("key", "unit") is None
        assert memory.outages == 1
        clock.now += 10.0
        await asyncio.gather(*(memory.recall("key", "unit") for _ in range(20)))
        assert memory.outages == 2, "one request tries"


async def test_a_cancelled_request_stays_cancelled_and_a_closed_runtime_is_an_outage(server: RedisProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = RedisServer(SecretStr(f"redis://127.0.0.1:{silent.getsockname()[1]}/0"), timeout_s=60)
        memory = SharedMemory(asked, name="app", key=KEY, keep_s=60, local=LocalMemory())
        request = asyncio.ensure_future(memory.recall("key", "unit"))
        await asyncio.sleep(0.05)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert memory.outages == 0
        waiting = asyncio.ensure_future(memory.recall("key", "unit"))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(Runtime.default().close)
        assert await waiting is None
        assert memory.outages == 1
        for _ in range(2):
            assert await memory.recall("key", "unit") is None
