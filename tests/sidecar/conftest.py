"""Sidecars that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty.sidecar import Sidecar

from ctd_guardrail.sidecar.settings import ServeSettings


@pytest.fixture
def make_sidecar() -> Iterator[Callable[..., Sidecar]]:
    running: list[Sidecar] = []

    def make(folder: Path, *, loads: bool = True, **settings: Any) -> Sidecar:
        running.append(Sidecar(folder, ServeSettings(**settings), loads=loads))
        return running[-1].wait_until_ready() if loads else running[-1]

    yield make
    for sidecar in running:
        sidecar.stop()
