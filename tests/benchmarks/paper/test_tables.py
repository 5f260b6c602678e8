"""The writer writes what it is given, in the format of the files that are published."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.cube import FIGURES, Cube
from benchmarks.paper.protocols import OWN_METHODS, PAPER_ALPHAS, PAPER_METHODS, TARGETS
from benchmarks.paper.publish import publish
from benchmarks.paper.results import Index, Result
from benchmarks.paper.tables import TABLES, targets
from benchmarks.table import Table
from calibrate.evaluate.grid import ALPHAS

PUBLISHED = Path(__file__).parents[3] / "docs" / "benchmarks"
FIRST, OTHER, TOKENS = "probe on layer 4", "the same, Platt-scaled", "attention"
NUMBER = re.compile(r"-?\d+\.\d")


def cube(methods: tuple[str, ...], alphas: tuple[float, ...], seeds: int, seed: int) -> Cube:
    rng = np.random.default_rng(seed)
    return Cube(methods, alphas, rng.random((seeds, len(methods), len(alphas), len(FIGURES))))


def result(setting: str, recipe: str, seeds: int, *, refit_of: str | None = None, seed: int = 0) -> Result:
    rng = np.random.default_rng(seed)
    with_paper = recipe == FIRST and refit_of is None
    return Result(
        setting=setting,
        refit_of=refit_of,
        expert="strong",
        recipe=recipe,
        own=cube(OWN_METHODS, ALPHAS, seeds, seed),
        paper=cube(PAPER_METHODS, PAPER_ALPHAS, seeds, seed) if with_paper else None,
        spearman=rng.random((seeds, 2)),
        splits=rng.random((3, len(ALPHAS))),
        splits_count=25 * seeds,
        targets=cube(TARGETS, ALPHAS, seeds, seed) if with_paper else None,
    )


@pytest.fixture
def index() -> Index:
    results = [
        result("M", FIRST, 4, seed=1),
        result("R", FIRST, 4, refit_of="M", seed=2),
        result("M", OTHER, 3, seed=3),
        result("A edos", FIRST, 4, seed=4),
        result("", FIRST, 4, refit_of="A edos", seed=5),
        result("A edos", OTHER, 3, seed=6),
        result("A edos", TOKENS, 2, seed=7),
    ]
    return Index(results, [FIRST, OTHER], [TOKENS])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("name", TABLES)
def test_the_writer_writes_the_format_of_the_published_file(name: str, index: Index) -> None:
    published = rows((PUBLISHED / f"paper-{name}.csv").read_text(encoding="utf-8"))
    written = rows(TABLES[name](index).csv())
    assert list(published[0]) == list(written[0])
    for column in published[0]:
        forms = [{re.sub(r"\d+", "0", row[column].lstrip("-")) for row in table} for table in (published, written)]
        if all(NUMBER.fullmatch(value) for value in forms[1]):
            assert forms[0] <= {"0.0", ""}, column
    for column in {"method", "figure", "over"} & set(published[0]):
        assert {row[column] for row in published} == {row[column] for row in written}, column


@pytest.mark.parametrize("name", TABLES)
def test_no_figure_is_published_twice(name: str) -> None:
    published = rows((PUBLISHED / f"paper-{name}.csv").read_text(encoding="utf-8"))
    keys = [name for name in published[0] if name in {"setting", "settings", "expert", "recipe", "seeds", "method"}]
    keys += [name for name in published[0] if name in {"alpha", "figure", "over"}]
    found = [tuple(row[key] for key in keys) for row in published]
    assert len(set(found)) == len(found)


def test_a_figure_is_the_mean_over_seeds_in_points_of_100(index: Index) -> None:
    own = index.main[0].own
    (row,) = (
        row
        for row in rows(TABLES["figures"](index).csv())
        if (row["setting"], row["method"], row["alpha"]) == ("M", "ctd", "0.2")
    )
    values = 100 * own.get("ctd", "brier")[:, ALPHAS.index(0.2)]
    assert row["brier"] == f"{values.mean():.1f}"
    assert row["brier_standard_error"] == f"{values.std(ddof=1) / 2:.1f}"


def test_targets_are_compared_by_the_gain_of_the_continuous_one(index: Index) -> None:
    cubes = {result.setting: result.targets for result in index.main if result.targets is not None}
    found = rows(targets(index).csv())
    assert {row["setting"] for row in found} == set(cubes) == {"M", "A edos"}
    (row,) = (row for row in found if (row["setting"], row["alpha"], row["figure"]) == ("M", "0.2", "brier"))
    continuous, binary = (cubes["M"].get(name, "brier")[:, ALPHAS.index(0.2)] for name in TARGETS)
    assert row["mean"] == f"{100 * (binary - continuous).mean():.1f}"


def test_a_refitted_probe_without_a_setting_of_its_own_is_listed_under_the_setting_that_it_refits(index: Index) -> None:
    methods: dict[str, set[str]] = {}
    for row in rows(TABLES["figures"](index).csv()):
        methods.setdefault(row["setting"], set()).add(row["method"])
    assert methods == {
        "M": set(OWN_METHODS),
        "R": set(OWN_METHODS),
        "A edos": {*OWN_METHODS, "refitted_probe", "refitted_ctd"},
    }


def test_recipes_are_compared_on_the_seeds_that_all_of_them_ran(index: Index) -> None:
    found = rows(TABLES["recipes-on-equal-seeds"](index).csv())
    assert {(row["setting"], row["seeds"], row["recipe"]) for row in found} == {
        *(("M", "3", FIRST), ("M", "3", OTHER)),
        *(("A edos", "3", FIRST), ("A edos", "3", OTHER), ("A edos", "2", FIRST), ("A edos", "2", TOKENS)),
    }
    first = next(row for row in found if (row["setting"], row["method"], row["figure"]) == ("M", "ctd", "auroc"))
    expected = 100 * index.main[0].own.get("ctd", "auroc")[:3].mean()
    assert first["mean"] == f"{expected:.1f}"


def test_a_margin_is_a_difference_on_the_same_rows(index: Index) -> None:
    own = index.main[0].own
    (row,) = (
        row
        for row in rows(TABLES["margins"](index).csv())
        if (row["setting"], row["over"], row["figure"]) == ("M", "ridge", "auroc")
    )
    difference = 100 * (own.get("ctd", "auroc") - own.get("ridge", "auroc")).mean(axis=1)
    assert (row["mean"], row["standard_error"]) == (
        f"{difference.mean():.1f}",
        f"{difference.std(ddof=1) / 2:.1f}",
    )


def test_publishing_writes_every_table_and_picture(index: Index, tmp_path: Path) -> None:
    publish(tmp_path, index.results, recipes=index.recipes, token_recipes=index.token_recipes)
    for name, table in TABLES.items():
        assert (tmp_path / "benchmarks" / f"paper-{name}.csv").read_text(encoding="utf-8") == table(index).csv()
    pictures = {"benchmark-curves.svg", "benchmark-paper.svg", "benchmark-values.svg"}
    assert {file.name for file in (tmp_path / "images").iterdir()} == pictures


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table(["one", "two"]).add(1)


def test_a_cell_with_a_comma_survives_the_file_and_an_empty_cell_is_empty() -> None:
    table = Table(["name", "value"], [("a, b", 0.5), ("c", None)])
    assert rows(table.csv()) == [{"name": "a, b", "value": "0.5"}, {"name": "c", "value": ""}]
    assert table.markdown().splitlines()[2:] == ["| a, b | 0.5 |", "| c |  |"]
