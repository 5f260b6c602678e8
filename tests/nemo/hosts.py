"""Where the versions of NeMo Guardrails differ."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ctd_guardrail.errors import CtdError

__all__ = ["refused_start"]


@contextmanager
def refused_start() -> Iterator[list[CtdError]]:
    """Expect that an app does not start; its list then holds this package's error.

    NeMo Guardrails 0.24.0 lets the error through, 0.24.1 puts one of its own around it.
    """
    errors: list[CtdError] = []
    with pytest.raises((CtdError, RuntimeError)) as caught:
        yield errors
    error = caught.value if isinstance(caught.value, CtdError) else caught.value.__cause__
    assert isinstance(error, CtdError)
    errors.append(error)
