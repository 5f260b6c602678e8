"""The loopback judges of the fault suite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.faulty_expert import Judges


@pytest.fixture
def judges() -> Iterator[Judges]:
    with contextlib.ExitStack() as stack:
        yield Judges(stack)
