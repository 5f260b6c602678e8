"""From the section ``store`` to replicas that remember together."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.nemo.loading import LoadingGuard
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared_memory import SharedMemory
from tests.support.redis_process import PROGRAMS, RedisProcess
from tests.support.waiting import wait_until

STORE = {"url_env": "STORE_URL", "key_env": "STORE_KEY", "name": "chat"}
ODD = [{"role": "user", "content": "an odd question"}]
needs_server = pytest.mark.skipif(not PROGRAMS, reason="no redis-server or valkey-server here")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path)
    monkeypatch.setenv("STORE_URL", server.url)
    monkeypatch.setenv("STORE_KEY", "a secret of the deployment")
    yield server
    server.stop()


@pytest.fixture
def make_runtime() -> Iterator[Callable[[], Runtime]]:
    made: list[Runtime] = []

    def make() -> Runtime:
        made.append(Runtime())
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@needs_server
async def test_replicas_of_one_folder_ask_the_expert_once(
    make_rail_folder: Callable[..., Path], judge: Any, server: RedisProcess, make_runtime: Callable[[], Runtime]
) -> None:
    folder = make_rail_folder(store=STORE, cap={"calls": 2, "per_s": 3600})
    reasons = []
    for _ in range(3):
        async with load_guard(folder, in_service=True, runtime=make_runtime()) as guard:
            assert isinstance(guard.memory, SharedMemory)
            reasons.append((await guard.check(ODD)).reason)
    assert (judge.calls, set(reasons)) == (1, {"expert_safe"})
    server.stop()
    async with load_guard(folder, in_service=True, runtime=make_runtime()) as guard:
        assert (await guard.check(ODD)).reason == "cap_unavailable", "judged again, and the caps are on that server too"
    server.start()


@needs_server
async def test_another_budget_or_key_or_name_remembers_apart(
    make_rail_folder: Callable[..., Path],
    judge: Any,
    server: RedisProcess,
    make_runtime: Callable[[], Runtime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: list[dict[str, Any]] = [{}, {"store": STORE | {"name": "other"}}, {"alpha": 0.3}]
    for calls, change in enumerate(changes, start=1):
        async with load_guard(make_rail_folder(**({"store": STORE} | change)), runtime=make_runtime()) as guard:
            await guard.check(ODD)
        assert judge.calls == calls
    monkeypatch.setenv("STORE_KEY", "a secret of something else")
    async with load_guard(make_rail_folder(store=STORE), runtime=make_runtime()) as guard:
        await guard.check(ODD)
    assert judge.calls == len(changes) + 1


@needs_server
async def test_guards_of_one_process_share_one_memory_and_its_connections(
    make_rail_folder: Callable[..., Path], server: RedisProcess
) -> None:
    folder = make_rail_folder(store=STORE)
    async with load_guard(folder) as one, load_guard(folder) as other:
        assert one.memory is other.memory


@needs_server
async def test_an_answer_that_nemo_has_seen_given_reaches_the_server(
    make_rail_folder: Callable[..., Path], server: RedisProcess, make_runtime: Callable[[], Runtime]
) -> None:
    folder = make_rail_folder(store=STORE)
    runtime = make_runtime()
    loading = LoadingGuard(lambda: load_guard(folder, runtime=runtime))
    await loading.check(ODD)
    with Redis.from_url(server.url) as client:
        before = client.dbsize()
        loading.note_answer("a harmful answer")
        wait_until(lambda: client.dbsize() > before)
    loading.close()


def test_a_store_for_caps_alone_leaves_the_memory_to_each_process(
    make_rail_folder: Callable[..., Path], server: RedisProcess
) -> None:
    folder = make_rail_folder(store={"url_env": "STORE_URL"}, cap={"calls": 2, "per_s": 3600})
    assert load_guard(folder).memory is Runtime.default().memory


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("", "a secret of the deployment", "STORE_URL is not set"),
        ("redis://127.0.0.1:1/0", "short", "store.key_env: .*holds 5 bytes"),
        ("redis://127.0.0.1:1/0", "", "store.key_env: .*holds 0 bytes"),
        ("http://user:canary@host", "a secret of the deployment", "does not hold a Redis address"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_at_the_start(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, url: str, key: str, message: str
) -> None:
    pytest.importorskip("redis")
    monkeypatch.setenv("STORE_URL", url)
    monkeypatch.setenv("STORE_KEY", key)
    with pytest.raises(ConfigError, match=message) as raised:
        load_guard(make_rail_folder(store=STORE))
    assert "canary" not in str(raised.value)
