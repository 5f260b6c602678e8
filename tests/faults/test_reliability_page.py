"""The page says what the suite tries, and nothing else."""

import re

import pytest

from tests.faults.page import read_page
from tests.faults.rows import ROWS, Row


@pytest.fixture(autouse=True)
def _not_while_it_is_measured(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--faults") == "full":
        pytest.skip("the page is written when this run ends")


def test_the_page_has_the_suites_rows_in_their_order() -> None:
    assert [(threat, holds) for threat, (holds, _, _) in read_page().items()] == [
        (row.threat, row.holds) for row in ROWS
    ], "run `make test-faults`, or the new file with `--faults=full`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_row_was_tried_in_full_and_held(row: Row) -> None:
    held, of = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", read_page()[row.threat][1])[:2])
    assert held == of >= row.trials
