from __future__ import annotations

from pathlib import Path

import pytest

from ctd_guardrail.policy.envelope import Simultaneous
from ctd_guardrail.policy.guarantees import Exact, Expected, NextRequests, Rule

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")


def _table(name: str) -> list[list[str]]:
    """The cells of the table behind its marker, without header."""
    lines = PAGE.split(f"<!-- table: {name} -->\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_rows_is_what_the_code_says() -> None:
    rules: list[Rule] = [Exact(0.05), Exact(0.1), Exact(0.01), Simultaneous(0.05), NextRequests(0.05, 1000), Expected()]
    for alpha, *cells in _table("rows"):
        assert [int(cell) for cell in cells] == [rule.rows(1, float(alpha)) for rule in rules]


def test_the_table_of_budget_used_is_what_the_code_says() -> None:
    for rows, *cells in _table("used"):
        n = int(rows)
        used = [
            (rule.exceedances(n, alpha) + 1) / (n + 1) / alpha
            for rule in (Exact(0.05), Simultaneous(0.05))
            for alpha in (0.05, 0.1, 0.2, 0.5)
        ]
        assert [float(cell) for cell in cells] == pytest.approx(used, abs=0.00501)


def test_every_picture_is_there() -> None:
    pictures = [part.split(")")[0] for part in PAGE.split("](")[1:] if ".svg" in part.split(")")[0]]
    assert len(pictures) == 7
    for picture in pictures:
        assert (Path(__file__).parents[2] / "docs" / picture).is_file()
