"""What every test of the rail inside NeMo Guardrails needs of its surroundings."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nemoguardrails.guardrails import compiled_rail
from nemoguardrails.manifests import registry

from ctd_guardrail.nemo import iorails


@pytest.fixture(autouse=True)
def _checkout_on_the_import_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # NeMo resolves import_paths against the current folder and site-packages; a checkout is the former.
    monkeypatch.chdir(Path(__file__).parents[2])
    yield
    sys.modules.pop("config", None)


@pytest.fixture(autouse=True)
def _loops_that_the_host_forgets(host_loops: None) -> None:
    """Every test here makes apps."""


@pytest.fixture
def installed_in_iorails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the rail into the catalog of IORails, and take it out again."""
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    catalog, hooks = registry._catalog, compiled_rail._LOCAL_BACKEND_CHECKS
    iorails.install()
    yield
    registry._catalog = catalog
    hooks.pop("ctd_guardrail", None)
