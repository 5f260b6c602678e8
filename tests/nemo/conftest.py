"""What every test of the rail inside NeMo Guardrails needs of its surroundings."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _checkout_on_the_import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # NeMo resolves import_paths against the current folder and site-packages; a checkout is the former.
    monkeypatch.chdir(Path(__file__).parents[2])
    yield
    sys.modules.pop("config", None)


@pytest.fixture(autouse=True)
def _loops_that_the_host_forgets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # NeMo's synchronous calls make an event loop for each thread and never close it.
    loops: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def remember() -> asyncio.AbstractEventLoop:
        loops.append(make())
        return loops[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remember)
    yield
    for loop in loops:
        if not loop.is_running():
            loop.close()
