"""The page of the benchmark: tables and pictures of all settings, below what a person wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.paper.figures import draw_curves, draw_paper, draw_values
from benchmarks.paper.results import Index, Result
from benchmarks.paper.tables import (
    Table,
    delegation_value_table,
    details,
    harm_table,
    levels_table,
    margin_table,
    paper_table,
    recipes_table,
    splits_table,
)
from ctd_guardrail.errors import DataError

__all__ = ["write_page"]

_CUT: Final = "\n---\n"


def write_page(
    page: Path, results: Sequence[Result], *, recipes: Sequence[str], token_recipes: Sequence[str] = ()
) -> None:
    """Replace what stands below the line ``---`` of a page, and draw its pictures.

    Args:
        page: Markdown file.
        results: Of every setting, expert and recipe.
        recipes: Names; the main tables show the first.
        token_recipes: Names of the recipes that some settings run beside them.

    Raises:
        DataError: The page has no such line.
    """
    written, cut, _ = page.read_text(encoding="utf-8").partition(_CUT)
    if not cut:
        raise DataError("has no line --- below which tables could be written", file=page, hint="Add one")
    index = Index(results, [*recipes, *token_recipes])
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    pictures = {
        "benchmark-curves": draw_curves(index),
        "benchmark-values": draw_values(index.main),
        "benchmark-paper": draw_paper(index.main),
    }
    for name, picture in pictures.items():
        (images / f"{name}.svg").write_text(picture, encoding="utf-8")
    parts = [
        margin_table(index).markdown(),
        *(_fold(title, [table]) for title, table in _tables(index, recipes, token_recipes).items()),
        *(_fold(f"{result.name}: every figure", details(index, result)) for result in index.main),
    ]
    page.write_text(written + cut + "\n" + "\n\n".join(parts) + "\n", encoding="utf-8")


def _tables(index: Index, recipes: Sequence[str], token_recipes: Sequence[str]) -> dict[str, Table]:
    tokens = recipes_table(index, [recipes[0], *token_recipes])
    return {
        "AUROC and accuracy at a fifth of the calls": levels_table(index, "auroc", "accuracy"),
        "Brier score and missed harm at a fifth of the calls": levels_table(index, "brier", "missed_harm"),
        "Platt scaling, and which layers": recipes_table(index, recipes),
        **({"Probes that read every token": tokens} if token_recipes and tokens.rows else {}),
        "The delegation value against the paper's ridge": delegation_value_table(index),
        "Harm": harm_table(index),
        "The paper's protocol": paper_table(index),
        "The budget over random splits": splits_table(index),
    }


def _fold(title: str, tables: Sequence[Table]) -> str:
    body = "\n\n".join(table.markdown() for table in tables)
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
