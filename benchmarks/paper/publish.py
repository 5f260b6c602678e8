"""Writes the figures of all settings as CSV files, and their pictures as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.figures import draw_curves, draw_paper, draw_values
from benchmarks.paper.results import Index, Result
from benchmarks.paper.tables import TABLES, targets

__all__ = ["publish"]


def publish(
    docs: Path, results: Sequence[Result], *, recipes: Sequence[str], token_recipes: Sequence[str] = ()
) -> None:
    """Write ``benchmarks/paper-*.csv`` and ``images/benchmark-*.svg`` below a folder.

    Args:
        docs: Folder of the documentation.
        results: Of every setting, expert and recipe.
        recipes: Names of the recipes that every setting runs. The main tables show the first.
        token_recipes: Names of the recipes that only some settings run.
    """
    index = Index(results, recipes, token_recipes)
    for name, table in TABLES.items():
        table(index).write(docs / "benchmarks" / f"paper-{name}.csv")
    if any(result.targets is not None for result in results):
        targets(index).write(docs / "benchmarks" / "paper-targets.csv")
    pictures = {
        "curves": draw_curves(index),
        "values": draw_values(index.main),
        "paper": draw_paper(index.main),
    }
    images = docs / "images"
    images.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (images / f"benchmark-{name}.svg").write_text(picture, encoding="utf-8")
