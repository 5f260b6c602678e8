"""The runtime that guards take by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ctd_guardrail.runtime.runtime import _PROCESS, Runtime

__all__ = ["as_default"]


@contextmanager
def as_default(runtime: Runtime) -> Iterator[Runtime]:
    """Make a runtime the default one until the block ends, in all threads."""
    with _PROCESS.default_lock:
        before, _PROCESS.default = _PROCESS.default, runtime
    try:
        yield runtime
    finally:
        with _PROCESS.default_lock:
            _PROCESS.default = before
