"""What every test of the rail inside NeMo Guardrails needs of its surroundings."""

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
def _loops_that_the_host_forgets(host_loops: None) -> None:
    """Every test here makes apps."""
