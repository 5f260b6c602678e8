"""How often a test tries what it tests, and where it notes what held."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from tests.faults.page import Result, write_page
from tests.faults.rows import ROWS

_RESULTS = pytest.StashKey[dict[str, Result]]()


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Return a function that chooses between the trials of `make test-faults` and those of `make test`."""
    is_full = request.config.getoption("--faults") == "full"

    def trials(*, full: int, reduced: int) -> int:
        return full if is_full else reduced

    return trials


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that checks and notes in how many trials something held; tests of one row add up."""
    results = request.config.stash.setdefault(_RESULTS, {})

    def record(row: str, held: int, of: int, *, figure: str = "") -> None:
        assert row in {known.key for known in ROWS}, f"add {row} to tests/faults/rows.py"
        assert held == of, f"{row}: {held} of {of} held"
        result = results.setdefault(row, Result())
        result.held += held
        result.of += of
        result.figures += (figure,) if figure else ()

    return record


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # A row that was not tried in full, because one of its tests failed or was not chosen, stays as it was.
    results = session.config.stash.get(_RESULTS, {})
    if results and session.config.getoption("--faults") == "full":
        write_page(results, day=dt.datetime.now(tz=dt.UTC).date())
