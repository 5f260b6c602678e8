"""Clients that hold more connections than there are descriptors keep neither health checks nor traffic out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.held_connections import HELD, hold
from tests.support.sidecar import sidecar_process

resource = pytest.importorskip("resource")  # not on Windows, where the limit does not hold

MANY = 1100
DESCRIPTORS = 1024
TEXTS = ("a plain question", "an odd question")


@pytest.fixture
def _enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 4096:
        pytest.skip("the clients need more descriptors than this machine allows")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_enough_descriptors")
def test_held_connections_leave_readiness_traffic_and_log_as_they_were(
    make_rail_folder: Callable[..., Path],
    tmp_path: Path,
    trials: Callable[..., int],
    record: Callable[..., None],
) -> None:
    each = trials(full=100, reduced=2)
    options = ("--header-timeout", "600", "--drain-delay", "0")  # the limit holds here, and not the deadline
    with sidecar_process(make_rail_folder(), tmp_path / "log", *options, descriptors=DESCRIPTORS) as server:
        server.wait_for(lambda: server.status() == 200)
        lines = server.log.count("\n")
        held = evicted = 0
        for name, sent in HELD.items():
            with ExitStack() as stack:
                hold(stack, server.url, sent, MANY)
                for number in range(each):
                    is_ready = server.status() == 200
                    held += is_ready and server.check(TEXTS[number % len(TEXTS)])["verdict"] == "allow"
                seen = httpx.get(f"{server.url}/v1/stats").json()["connections"]
                assert seen["open"] <= DESCRIPTORS - 200
                assert seen["closed"]["evicted"] - evicted >= MANY - seen["most"], name
                evicted = seen["closed"]["evicted"]
        assert server.log.count("\n") - lines <= 3
        server.popen.terminate()
        assert server.popen.wait(60) == 0
        assert f"{evicted} evicted" in server.log
        assert "Traceback" not in server.log
        assert "system resource" not in server.log
    record("held_connections", held, each * len(HELD), figure=f"{evicted:,} connections closed to make room")
