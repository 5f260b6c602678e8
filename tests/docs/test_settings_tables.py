"""The tables of settings say what the models say."""

import re
from pathlib import Path

import pytest

from tools import settings_tables

ROOT = Path(__file__).parents[2]
PAGES = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
PATHS = frozenset[str]().union(*(settings_tables.paths_of(page) for page in PAGES.values()))
# Explained in the text of the page: the rail's experts, and a bound on a risk.
IN_THE_TEXT = {"CALIBRATE.yml.expert", "CALIBRATE.yml.budget.risk"}


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if settings_tables.paths_of(page)])
def test_the_page_and_the_models_are_in_step(name: str) -> None:
    assert settings_tables.updated(PAGES[name], PATHS) == PAGES[name], "run `make docs-tables`"


def test_every_section_has_a_table() -> None:
    rows = [(path, row) for path in PATHS for row in settings_tables.table(path, PATHS).splitlines()[2:]]
    named = {
        f"{path}.{re.match(r'[| `]*([^`]+)', row)[1]}"  # type: ignore[index]
        for path, row in rows
        if "section" in row.split(" | ")[1]
    }
    assert len(named) > 10
    without = {path for path in named if not any(f"{other}.".startswith(f"{path}.") for other in PATHS)}
    assert without == IN_THE_TEXT


def test_a_table_states_values_default_and_meaning() -> None:
    rows = {row.split("`")[1]: row for row in settings_tables.table("custom_data.ctd", PATHS).splitlines()[2:]}
    assert rows["mode"].startswith("| `mode` | `enforce`, `shadow` | `enforce` | `enforce` blocks;")
    assert (
        rows["horizon"]
        == "| `horizon` | whole number (at least 1) |  | Number of inputs that `guarantee: next` is about. |"
    )
    assert rows["policy"].split(" | ")[1:3] == ["path", "required"]
    assert rows["breaker"].split(" | ")[1:3] == ["whole number (at least 1) or `null`", "`5`"]
    assert rows["costs.call"].split(" | ")[1:3] == ["number (at least 0)", "`0.0`"]
    assert rows["cap"].split(" | ")[1] == "section or list of sections"
    kinds = settings_tables.table("custom_data.ctd.expert.rail", PATHS)
    assert "`flow`" in kinds
    assert "`base_url`" not in kinds


def test_an_unknown_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        settings_tables.table("custom_data.ctd.nothing")
