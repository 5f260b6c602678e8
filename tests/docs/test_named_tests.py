"""A page that says which test shows a claim names one that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
_NAMED = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = _NAMED.findall(page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / "tests" / name).is_file()]


def test_every_row_of_the_security_page_names_a_test() -> None:
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("| threat |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) > 20
    assert all(_NAMED.search(row) for row in rows)
