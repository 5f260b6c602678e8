"""The generated part of docs/reliability.md: one row a threat, with the number that held at the last full run."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.rows import ROWS

__all__ = ["PAGE", "Result", "read_page", "write_page"]

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_MARK = "\n---\n"
_HEAD = "| threat or fault | what holds in every trial | held | measured |\n|---|---|---|---|\n"
_LINE = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


@dataclass(slots=True)
class Result:
    """What the tests of a row recorded.

    Attributes:
        held: Trials in which it held.
        of: All trials.
        figures: Further measurements, for example a percentile.
    """

    held: int = 0
    of: int = 0
    figures: tuple[str, ...] = ()


def read_page() -> dict[str, tuple[str, str, str]]:
    """Return what holds, the number and the date by the threat, as the page states them."""
    generated = PAGE.read_text(encoding="utf-8").partition(_MARK)[2]
    return {threat: (holds, held, day) for threat, holds, held, day in _LINE.findall(generated)[1:]}


def write_page(results: Mapping[str, Result], *, day: dt.date) -> None:
    """Put new results in the place of old ones; rows that were not tried in full this time stay as they are.

    Args:
        results: By the row's key.
        day: The day of the measurement.
    """
    written = PAGE.read_text(encoding="utf-8").partition(_MARK)[0]
    known = read_page()
    lines = []
    for row in ROWS:
        result = results.get(row.key, Result())
        if result.of >= row.trials:
            held = "; ".join([f"{result.held:,} of {result.of:,}", *result.figures])
            lines.append(f"| {row.threat} | {row.holds} | {held} | {day.isoformat()} |")
        elif row.threat in known:
            lines.append(f"| {row.threat} | {row.holds} | {' | '.join(known[row.threat][1:])} |")
    PAGE.write_text(f"{written}{_MARK}\n{_HEAD}" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
