"""A guard in service whose exports are looked at."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from ctd_guardrail.observability import service_metrics
from tests.operations.station import Station


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    """A guard that has decided nothing yet."""
    monkeypatch.setattr(service_metrics, "_SERVICES", weakref.WeakSet())  # services that other tests have left
    folder = tmp_path / "rail"
    folder.mkdir()
    return Station(folder)
