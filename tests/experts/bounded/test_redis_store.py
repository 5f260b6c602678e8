"""Against a real server: a cap that several processes share."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from ctd_guardrail.errors import CapStoreError, ConfigError
from ctd_guardrail.experts.bounded.buckets import Demand
from ctd_guardrail.experts.bounded.redis_store import RedisStore
from ctd_guardrail.runtime.redis_server import RedisServer
from tests.support.redis_process import PROGRAMS, RedisProcess

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no redis-server or valkey-server here")

TAKER = """
import asyncio, sys
from pydantic import SecretStr
from ctd_guardrail.experts.bounded.redis_store import RedisStore
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.errors import ExpertCapError

async def main():
    store = RedisStore(RedisServer(SecretStr(sys.argv[1]), timeout_s=30), name="shared")
    caps = SpendCaps([Cap("calls", 100, 36000.0, 100, False)], store, max_principals=1)
    passed = 0
    for _ in range(150):
        try:
            await caps.take(None, tokens=1)
            passed += 1
        except ExpertCapError:
            pass
    print(passed)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def store(url: str, name: str, timeout_s: float = 30.0) -> RedisStore:
    return RedisStore(RedisServer(SecretStr(url), timeout_s=timeout_s), name=name)


def demand(amount: float, *, rate: float = 1e-9, capacity: float = 10.0, key: str = "key") -> Demand:
    return Demand(key, rate, capacity, amount)


async def test_it_gives_no_more_than_the_bucket_holds_and_all_or_nothing(server: RedisProcess) -> None:
    redis = store(server.url, "levels")
    assert [await redis.take([demand(3)]) for _ in range(4)] == [True, True, True, False]
    both = [demand(1, key="other"), demand(3)]
    assert not await redis.take(both)
    assert await redis.take([demand(10, key="other")])
    await redis.charge([demand(5)])
    assert not await redis.take([demand(1)])
    await redis.charge([demand(-7)])
    assert await redis.take([demand(3)])
    assert not await redis.take([demand(1)])


async def test_a_bucket_refills_and_is_forgotten_when_it_is_full(server: RedisProcess) -> None:
    redis = store(server.url, "refill")
    fast = demand(10, rate=200.0)
    assert await redis.take([fast])
    async with asyncio.timeout(60):
        while not await redis.take([fast]):  # noqa: ASYNC110  # it refills after 50 ms
            await asyncio.sleep(0.01)
    with Redis.from_url(server.url) as client:
        assert 0 < client.pttl("{ctd:refill}:key") <= 1051


def test_it_serves_any_event_loop(server: RedisProcess) -> None:
    redis = store(server.url, "loops")
    assert [asyncio.run(redis.take([demand(4)])) for _ in range(3)] == [True, True, False]


def test_two_processes_share_one_cap(server: RedisProcess) -> None:
    command = [sys.executable, "-c", TAKER, server.url]
    takers = [
        subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    ]
    passed = [int(taker.communicate(timeout=60)[0]) for taker in takers]
    assert sum(passed) == 100


async def test_a_server_that_is_down_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    server = RedisProcess(tmp_path)
    redis = store(server.url, "down", timeout_s=5.0)
    assert await redis.take([demand(1)])
    server.stop()
    for _ in range(3):
        with pytest.raises(CapStoreError, match="did not answer") as raised:
            await redis.take([demand(1)])
        assert str(server.port) not in str(raised.value)
    server.start()
    try:
        assert await redis.take([demand(1)])
    finally:
        server.stop()


async def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        redis = store(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "silent", timeout_s=0.05)
        with pytest.raises(CapStoreError):
            await redis.take([demand(1)])


def test_what_is_no_address_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigError) as raised:
        store("http://user:canary@host", "name")
    assert "canary" not in str(raised.value)
