"""What guards share, and that a closed runtime leaves nothing behind."""

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.decision import Reason, Verdict
from ctd_guardrail.runtime.lru import LruCache
from ctd_guardrail.runtime.runtime import Runtime
from tests.support.internals import scorer_of
from tests.support.runtimes import as_default
from tests.support.waiting import wait_until

FILES = Path("/proc/self/fd")


def open_files() -> Counter[str]:
    """Return what this process has open, by kind: numbers of sockets and pipes differ from one to the next."""
    if not FILES.exists():
        return Counter()
    links = []
    for file in FILES.iterdir():
        try:
            links.append(str(file.readlink()).split("[")[0])
        except FileNotFoundError:  # the listing itself
            continue
    return Counter(links)


def own_threads() -> Counter[str]:
    return Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("ctd-"))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_fifty_guards_leave_no_thread_no_file_and_no_model(
    make_rail_folder: Callable[..., Path], judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTD_TEST_KEY", "a secret of the operator")
    folder = make_rail_folder(
        monitor={"state": "state"},
        audit_log={"path": "audit.jsonl", "key_env": "CTD_TEST_KEY"},
        cap={"calls": 1000, "per_s": 3600},
        alpha=0.6,
    )

    def serve(guards: int) -> weakref.ref[Any]:
        runtime = Runtime()
        made = [load_guard(folder, in_service=True, runtime=runtime) for _ in range(guards)]
        scorers = {id(scorer_of(guard)) for guard in made}
        assert len(scorers) == 1, "they share the base model"

        async def ask() -> None:
            for number, guard in enumerate(made):
                decision = await guard.check(user(f"an odd question{' ' * number}"))
                assert decision.reason is Reason.EXPERT_SAFE
                if number % 2:  # the others are dropped unclosed, as hosts do
                    await guard.aclose()

        asyncio.run(ask())
        assert {"ctd-device", "ctd-io", "ctd-observe"} <= {*(own_threads() - threads)}
        model = weakref.ref(scorer_of(made[0]))
        runtime.close()
        return model

    gc.collect()
    threads = own_threads()  # base models of other tests may live on
    serve(1)  # what libraries open once
    gc.collect()
    wait_until(lambda: own_threads() <= threads, explain=lambda: own_threads() - threads)
    files = open_files()
    model = serve(50)
    gc.collect()
    assert model() is None
    wait_until(lambda: own_threads() <= threads, explain=lambda: own_threads() - threads)
    # The judge's own threads close their ends of the connections a moment later.
    wait_until(lambda: open_files() <= files, explain=lambda: open_files() - files)


async def test_a_guard_of_a_closed_runtime_blocks(make_rail_folder: Callable[..., Path]) -> None:
    runtime = Runtime()
    guard = load_guard(make_rail_folder(on_failure="probe"), runtime=runtime)
    assert (await guard.check(user("a plain question"))).verdict is Verdict.ALLOW
    runtime.close()
    runtime.close()
    for text in ("a plain question", "a plain answer"):
        decision = await guard.check(user(text))
        assert decision.verdict is Verdict.BLOCK
        assert decision.reason.is_failure
    with pytest.raises(RuntimeError, match="the runtime is closed"):
        load_guard(guard.folder, runtime=runtime)


async def test_runtimes_remember_and_load_apart(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    one, other = Runtime(), Runtime()
    guards = [load_guard(folder, runtime=runtime) for runtime in (one, one, other)]
    for guard in guards:
        await guard.check(user("a plain question"))
    assert [guard.tally.snapshot().recalled for guard in guards] == [0, 1, 0]
    assert scorer_of(guards[0]) is scorer_of(guards[1])
    assert scorer_of(guards[0]) is not scorer_of(guards[2])
    one.close()
    assert (await guards[2].check(user("an odd question"))).reason is Reason.EXPERT_SAFE
    other.close()


def test_the_default_runtime_is_made_again_after_it_was_closed() -> None:
    first = Runtime.default()
    assert Runtime.default() is first
    with as_default(Runtime()) as other:
        assert Runtime.default() is other
        other.close()
        assert Runtime.default() is not other
        Runtime.default().close()
    assert Runtime.default() is first
    assert other not in Runtime.all()


def test_a_cache_drops_what_was_used_least_recently() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    assert len(cache) == 2
