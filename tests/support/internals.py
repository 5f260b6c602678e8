"""Private parts of the product that several test files need. Only this file names them.

A rename in the product then changes one line of the tests. tests/test_architecture.py holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from calibrate.features import tokens
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.openai.expert import OpenAIExpert

__all__ = [
    "batcher_of",
    "cascade_of",
    "http_call",
    "loaded_guard",
    "model_of",
    "put_guard",
    "put_http_call",
    "put_scorer",
    "scorer_of",
    "shorten_pauses",
    "shorten_shards",
    "source_of",
    "take_guard",
    "thread_of",
]


def loaded_guard(service: Any) -> Any:
    """Return the guard that the sidecar's service has loaded."""
    return service._current.guard


def put_guard(service: Any, guard: Any) -> None:
    """Let a double stand for the guard that the sidecar's service has loaded."""
    service._current = SimpleNamespace(guard=guard)


def take_guard(service: Any) -> None:
    """Leave the sidecar's service without a guard."""
    service._current = None


def cascade_of(guard: Any) -> Any:
    """Return the cascade of a guard's own configuration, without any request's overrides."""
    return guard._cascade


def scorer_of(guard: Any) -> Any:
    """Return the scorer of a guard's own configuration."""
    return cascade_of(guard)._scorer


def put_scorer(cascade: Any, scorer: Any) -> None:
    """Give a cascade another scorer."""
    cascade._scorer = scorer


def batcher_of(base_model: Any) -> Any:
    """Return the micro-batcher of a base model."""
    return base_model._batcher


def thread_of(batcher: Any) -> Any:
    """Return the thread on which a micro-batcher runs its batches."""
    return batcher._thread


def source_of(base_model: Any) -> Any:
    """Return the activation source of a base model."""
    return base_model._source


def model_of(source: Any) -> Any:
    """Return the truncated model of an activation source."""
    return source._model


def http_call() -> Callable[..., Any]:
    """Return the method by which OpenAI experts call their endpoint."""
    return OpenAIExpert._call


def put_http_call(monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], expert: Any = OpenAIExpert) -> None:
    """Replace the call of one OpenAI expert, or of all."""
    monkeypatch.setattr(expert, "_call", call)


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between attempts at an expert a millisecond long."""
    monkeypatch.setitem(BoundedExpert.__init__.__kwdefaults__, "first_pause_s", 0.001)


def shorten_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 500 characters fill a shard of token activations, so that few rows fill several."""
    monkeypatch.setattr(tokens, "_SHARD_CHARACTERS", 500)
