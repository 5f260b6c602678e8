"""The table of doors in docs/reliability.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

__all__ = ["Count", "table_of", "write_table"]

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
_MARK: Final = "<!-- table: doors -->\n"
_HEAD: Final = (
    "| NeMo Guardrails | engine | door | requests | refused | answered | neither | calls without a verdict |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


@dataclass(slots=True)
class Count:
    """What came of the requests at one door.

    Attributes:
        refused: The guard blocked.
        answered: The main LLM was called, and carried nothing that the guard refuses.
        neither: The host itself turned the request away, or asked the main LLM for nothing.
        unscreened: Calls of the main LLM that carried what the guard refuses.
    """

    refused: int = 0
    answered: int = 0
    neither: int = 0
    unscreened: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.refused + self.answered + self.neither


def table_of(counts: Mapping[tuple[str, str], Count]) -> str:
    """Return the rows of one version of the host, by engine and door."""
    host = version("nemoguardrails")
    rows = [
        f"| {host} | {engine} | {door} | {c.requests:,} | {c.refused:,} | {c.answered:,} | {c.neither:,} | "
        f"{c.unscreened} |\n"
        for (engine, door), c in counts.items()
    ]
    return "".join(rows)


def write_table(counts: Mapping[tuple[str, str], Count]) -> None:
    """Put the rows of this version of the host in the place of its old ones."""
    page = PAGE.read_text(encoding="utf-8")
    before, mark, rest = page.partition(_MARK)
    assert mark, f"{PAGE.name} has no {_MARK.strip()}"
    table = re.match(r"(?:\|.*\n)*", rest)
    assert table is not None
    host = version("nemoguardrails")
    others = [line for line in table[0].splitlines(keepends=True)[2:] if not line.startswith(f"| {host} |")]
    rows = "".join(sorted([*others, *table_of(counts).splitlines(keepends=True)], key=lambda row: row.split(" | ")[0]))
    PAGE.write_text(f"{before}{mark}{_HEAD}{rows}{rest[table.end() :]}", encoding="utf-8")
