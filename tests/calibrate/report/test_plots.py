"""Plots of a study: well-formed, the same for the same numbers, and said in words."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from calibrate.evaluate.grid import Grid
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import Study, measure_study
from calibrate.report.delegation_plots import delegation_sketches
from calibrate.report.plots import Plot, draw_plots
from ctd_guardrail.policy.store import CalibrationScores

SVG = "{http://www.w3.org/2000/svg}"


def rows(seed: int) -> ScoredRows:
    rng = np.random.default_rng(seed)
    p, label = rng.random(150), (rng.random(150) < 0.4).astype(float)
    expert = np.clip(0.3 + 0.4 * label + 0.2 * rng.normal(size=150), 0, 1)
    value = (2 * label - 1) * (expert - p)
    group = ["<b> & co" if i % 2 else "$plain$" for i in range(150)]
    return ScoredRows(p, value + 0.4 * rng.normal(size=150), expert, label, group)


@pytest.fixture(scope="module")
def made() -> Study:
    held = rows(1)
    scores = CalibrationScores.from_rows(d=held.d, p=held.p, expert=held.expert, label=held.label)
    return measure_study(Grid(rows(0), scores, delta=0.1), alpha=0.2, splits=20)


@pytest.fixture(scope="module")
def plots(made: Study) -> list[Plot]:
    return list(draw_plots(made))


def test_every_table_is_drawn(made: Study, plots: list[Plot]) -> None:
    assert {plot.table for plot in plots} == set(made.tables)
    assert len({plot.name for plot in plots}) == len(plots)


def test_they_are_well_formed_described_and_undated(plots: list[Plot]) -> None:
    for plot in plots:
        root = ET.fromstring(plot.svg)  # noqa: S314 - drawn by ourselves
        assert root.get("role") == "img"
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None
        assert description is not None
        assert (title.text, description.text) == (plot.title, plot.alt)
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        # Text that can be read aloud and scaled, not outlines of letters.
        assert root.findall(f".//{SVG}text")
        assert "date>" not in plot.svg
        assert "nan" not in plot.alt


def test_the_same_numbers_give_the_same_bytes(made: Study, plots: list[Plot]) -> None:
    assert [plot.svg for plot in draw_plots(made)] == [plot.svg for plot in plots]


def test_what_a_plot_refers_to_is_its_own(plots: list[Plot]) -> None:
    found: set[str] = set()
    for plot in plots:
        mine = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", plot.svg))
        assert mine
        assert not mine & found
        found |= mine


def test_alternative_texts_state_the_numbers_of_the_tables(made: Study, plots: list[Plot]) -> None:
    (plot,) = (plot for plot in plots if plot.name == "cascade_auroc")
    for row in made.tables["cascade"].where(alpha=0.2):
        if row["method"] in {"ctd", "uncertainty", "oracle"}:
            assert f"{row['auroc']:.3f}" in plot.alt


def test_a_study_without_failures_has_no_plot_of_them(made: Study) -> None:
    right = {**made.tables, "failures": replace(made.tables["failures"], rows=())}
    assert "failures" in {sketch.name for sketch in delegation_sketches(made)}
    assert "failures" not in {sketch.name for sketch in delegation_sketches(replace(made, tables=right))}


def test_names_from_data_are_shown_as_they_are(plots: list[Plot]) -> None:
    (plot,) = (plot for plot in plots if plot.name == "groups")
    texts = {text.text for text in ET.fromstring(plot.svg).iter(f"{SVG}text")}  # noqa: S314 - drawn by ourselves
    assert {"<b> & co", "$plain$"} <= texts
