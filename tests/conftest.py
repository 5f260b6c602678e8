"""Fixtures of all tests: tiny base models, a whole rail around one of them, and a judge.

Tests need no download, and no network but loopback.
"""

# Only tests that use a model pay for importing torch.
# ruff: noqa: PLC0415

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.loopback_judge import LoopbackJudge

if TYPE_CHECKING:
    from ctd_guardrail.runtime.runtime import Runtime

# Before anything imports torch or transformers.
os.environ.update(HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("reduced", "full"), default="reduced", help="trials of tests/faults")
    parser.addoption("--draws", type=int, default=100, help="draws of the simulated deployments in tests/statistics")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The timeout in pyproject.toml is for a few trials.
    is_full = config.getoption("--faults") == "full"
    for item in items:
        if (is_full or item.get_closest_marker("slow")) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Runtime]:
    """A fresh runtime for each test: what one test has decided must not answer for another."""
    from ctd_guardrail.runtime.runtime import Runtime
    from tests.support.runtimes import as_default

    for earlier in Runtime.all():  # those of fixtures with a wider scope
        earlier.memory.clear()
    with as_default(Runtime()) as fresh:
        yield fresh
    fresh.close()


@pytest.fixture
def draws(request: pytest.FixtureRequest) -> int:
    """Number of draws of a simulation: ``--draws 2000`` is the whole of it."""
    return int(request.config.getoption("--draws"))


@pytest.fixture(autouse=True)
def _root_logger_as_python_has_it() -> None:
    # NeMo's server sets it to INFO when it is imported, and other tests count what is logged.
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder (2 layers, width 32, 128 positions) with a WordPiece tokenizer over single characters."""
    from tests.support.tiny_models import write_tiny_bert

    return write_tiny_bert(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama decoder (3 layers, width 32, 256 positions) with a byte-level tokenizer and a chat template."""
    from tests.support.tiny_models import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture
def judge() -> Iterator[LoopbackJudge]:
    server = LoopbackJudge()
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_judge() -> Iterator[LoopbackJudge]:
    """For processes that serve many tests: these take its counts as differences."""
    server = LoopbackJudge()
    yield server
    server.close()


@pytest.fixture(scope="session")
def rail_policy(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on `tiny_bert` whose probes give the scores of RAIL_TEXTS exactly."""
    from tests.support.rail_policy import write_rail_policy

    return write_rail_policy(tmp_path_factory.mktemp("policy"), tiny_bert)


@pytest.fixture
def make_rail_folder(rail_policy: Path, tmp_path: Path, judge: LoopbackJudge) -> Callable[..., Path]:
    """Write a NeMo Guardrails folder with the rail; keyword arguments change `custom_data.ctd`, `config` the rest."""

    def make(*, config: dict[str, Any] | None = None, **changes: Any) -> Path:
        section = {
            "policy": os.path.relpath(rail_policy, tmp_path / "rails"),
            "alpha": 0.2,
            "delta": 0.1,
            "expert": {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5},
            "device": "cpu",
        }
        content = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": section | changes},
            "rails": {"input": {"flows": ["ctd check input"]}},
        }
        folder = tmp_path / "rails"
        folder.mkdir(exist_ok=True)
        (folder / "config.yml").write_text(yaml.safe_dump(content | (config or {})))
        return folder

    return make


@pytest.fixture
def host_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the event loops that NeMo's synchronous calls make for each thread and never close."""
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
