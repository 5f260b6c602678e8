"""A guard in service whose exports are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operations.station import Station


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """A guard that has decided nothing yet."""
    folder = tmp_path / "rail"
    folder.mkdir()
    return Station(folder)
