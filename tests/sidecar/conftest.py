"""Sidecars that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctd_guardrail.sidecar.service import Status
from ctd_guardrail.sidecar.settings import ServeSettings
from tests.support.counting import CountingGuard
from tests.support.internals import put_guard, take_guard
from tests.support.sidecar import Sidecar


@pytest.fixture
def make_sidecar() -> Iterator[Callable[..., Sidecar]]:
    running: list[Sidecar] = []

    def make(folder: Path, *, loads: bool = True, **settings: Any) -> Sidecar:
        running.append(Sidecar(folder, ServeSettings(**settings), loads=loads))
        return running[-1].wait_until_ready() if loads else running[-1]

    yield make
    for sidecar in running:
        sidecar.stop()


@pytest.fixture
def gated(make_sidecar: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    services: list[Any] = []

    def make(principal: Any = None, **settings: Any) -> tuple[Any, CountingGuard]:
        sidecar = make_sidecar(Path("nowhere"), loads=False, **settings)
        guard = CountingGuard()
        monkeypatch.setattr(sidecar.service, "check", guard.check)
        put_guard(sidecar.service, SimpleNamespace(principal=principal, watch=None, aclose=_nothing))
        sidecar.service.status = Status.READY
        services.append(sidecar.service)
        return sidecar, guard

    yield make
    for service in services:
        take_guard(service)  # a double cannot be closed when its sidecar ends


async def _nothing() -> None:
    pass
