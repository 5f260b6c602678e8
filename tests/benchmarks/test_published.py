"""The page of findings states what the CSV files state, and the files have the columns that the commands write."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.activations import run as activations
from benchmarks.calibration import certificates, conversations, few_labels, mapie, pace
from benchmarks.calibration import run as calibration
from benchmarks.load import compare, latency, memory, serving
from benchmarks.load import run as load
from benchmarks.paper.tables import TABLES
from benchmarks.robustness import run as robustness

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
ROOMS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
FILES = ROOT / "docs" / "benchmarks"
COLUMNS = {
    "activations": activations.COLUMNS,
    "calibration-certificates": certificates.COLUMNS,
    "calibration-conversations": conversations.COLUMNS,
    "calibration-few-labels": few_labels.COLUMNS,
    "calibration-mapie": mapie.COLUMNS,
    "calibration-pace": pace.COLUMNS,
    "calibration-run": calibration.COLUMNS,
    "load-compare-clock": compare.COLUMNS,
    "load-compare-forward": compare.COLUMNS,
    "load-latency": latency.COLUMNS,
    "load-memory": memory.COLUMNS,
    "load-rates": load.RATES,
    "load-serving": serving.COLUMNS,
    "load-soak": load.SOAK,
    "robustness": robustness.COLUMNS,
}


def read(name: str) -> list[dict[str, str]]:
    with (FILES / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def table(first_cells: str) -> list[list[str]]:
    """Return the rows of the table of the page whose header begins like this."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith(f"| {first_cells} |"):
            next(lines)
            return list(_rows(lines))
    raise AssertionError(first_cells)


def _rows(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_short_enough_to_read() -> None:
    assert len(PAGE.encode()) < 25_000


@pytest.mark.parametrize("name", COLUMNS)
def test_a_file_has_the_columns_that_its_command_writes(name: str) -> None:
    rows = read(name)
    assert tuple(rows[0]) == tuple(COLUMNS[name])
    assert all(None not in row for row in rows)
    assert all(None not in row.values() for row in rows)


def test_every_file_is_named_on_the_page_and_in_the_list_of_rooms() -> None:
    names = {file.stem for file in FILES.glob("*.csv")}
    assert names == {*COLUMNS, *(f"paper-{name}" for name in TABLES)}
    assert set(re.findall(r"\(benchmarks/([\w-]+)\.csv\)", PAGE)) == names
    assert set(re.findall(r"`([\w-]+)\.csv`", ROOMS)) == set(COLUMNS)


def test_every_command_exists() -> None:
    commands = {*re.findall(r"python -m (benchmarks\.[\w.]+)", PAGE)}
    commands |= {f"benchmarks.{name}" for name in re.findall(r"\| `(\w+\.(?!csv)\w+)(?:`| )", ROOMS)}
    assert len(commands) > 15
    for command in commands:
        assert hasattr(importlib.import_module(command), "main"), command


METHODS = ("probe", "uncertainty", "ridge", "ctd", "oracle")
# Settings whose refitted probe has a setting of its own.
REFITS = {row["refits"]: row["setting"] for row in read("paper-runs") if row["refits"]}


def test_the_figures_of_the_page_are_those_of_the_file() -> None:
    found = {
        (row["setting"], row["expert"], row["method"], row["alpha"] or "0.2"): f"{row['auroc']} / {row['accuracy']}"
        for row in read("paper-figures")
    }
    rows = table("setting, expert")
    assert len(rows) == 8
    for name, *cells in rows:
        setting, expert = name.rsplit(", ", 1)
        refit = [(REFITS[setting], "probe"), (REFITS[setting], "ctd")] if setting in REFITS else []
        refit = refit or [(setting, "refitted_probe"), (setting, "refitted_ctd")]
        keys = [*((setting, method) for method in METHODS), *refit]
        assert cells == [found[where, expert, method, "0.2"] for where, method in keys], name


def test_the_costs_of_a_request_are_those_of_the_file() -> None:
    found = {(row["engine"], row["at_once"], row["part"]): row["cpu_ms"] for row in read("load-latency")}
    for engine, at_once, *cells in table("engine"):
        assert cells == [found[engine, at_once, part] for part in latency.RAILS]


def test_the_latencies_under_load_are_those_of_the_file() -> None:
    found = {(row["door"], row["per_second"]): f"{row['p50_ms']} / {row['p99_ms']}" for row in read("load-rates")}
    for rate, *cells in table("requests a second"):
        assert cells == [found[door, rate] for door in ("sidecar", "iorails", "llmrails")]


def test_the_blocked_shares_are_those_of_the_file() -> None:
    found = {
        (row["disguise"], row["guard"], row["normaliser"]): f"{row['unsafe_blocked']} / {row['safe_blocked']}"
        for row in read("robustness")
    }
    kinds = [(guard, normaliser) for guard in ("probe", "cascade") for normaliser in ("without", "with")]
    for name, *cells in table("disguise"):
        assert cells == [found[name, *kind] for kind in kinds]


def test_the_costs_of_activations_are_those_of_the_file() -> None:
    found: dict[tuple[str, str], Sequence[str]] = {
        (row["model"], row["value"]): row["target"] for row in read("activations")
    }
    for _, target, *values in table("| target"):
        for model, value in zip(("MiniLM", "Llama"), values, strict=True):
            assert not value or found[model, value] == target


def test_the_costs_of_certificates_are_those_of_the_file() -> None:
    found = {(row["rows"], row["figure"]): row["value"] for row in read("calibration-certificates")}
    for count, sorts, alphas in table("rows"):
        rows = count.replace(",", "")
        assert sorts == found[rows, "in sorts"]
        figures = ("new alpha, exact, ms", "simultaneous, ms", "next 1e4, ms")
        assert alphas.split(" / ") == [found[rows, figure] for figure in figures]


def test_the_closed_form_is_tighter_than_mapie_in_a_hundredth_of_its_time() -> None:
    found = {(row["rows"], row["method"]): row for row in read("calibration-mapie")}
    shown = table("method | broken / of alpha, 1,000 rows")
    assert shown[0][0] == "closed form"
    for name, *cells in shown:
        small, middle, large = (found[rows, name] for rows in ("1000", "10000", "100000"))
        both = [f"{row['broken']} / {row['rate_of_alpha']}" for row in (small, middle)]
        assert cells == [*both, large["rate_of_alpha"], large["ms"]]
        for rows in ("1000", "10000", "100000"):
            assert float(found[rows, name]["rate_of_alpha"]) <= float(found[rows, "closed form"]["rate_of_alpha"])
        if name != "closed form":
            assert float(large["ms"]) >= 100 * float(found["100000", "closed form"]["ms"])


def test_the_bounds_from_few_labels_are_those_of_the_file() -> None:
    page = (ROOT / "docs" / "risks.md").read_text(encoding="utf-8")
    for row in read("calibration-few-labels"):
        shown = f"| {int(row['rows']):,} | {float(row['label_share']):.0%} | {row['labelled_alone']} |"
        line = next(line for line in page.splitlines() if line.startswith(shown))
        assert f"| {row['with_expert']} |" in line
        assert line.endswith(f"| {row['all_labelled']} |")


def test_the_calls_under_a_pace_are_those_of_the_file() -> None:
    page = (ROOT / "docs" / "pacing.md").read_text(encoding="utf-8").splitlines()
    for row in read("calibration-pace"):
        lost = f"{float(row['lost_busy']):.1%} | {float(row['lost_quiet']):.1%}"
        assert f"| {row['rate_without']} | {row['calls_per_request']} | {lost} |" in page
        # 30,000 requests at alpha = .1, and a reserve of 200 calls.
        assert float(row["calls_per_request"]) <= 0.1 + 200 / 30_000


def test_the_calls_per_request_are_those_of_the_file() -> None:
    found = {(row["scores"], row["alpha"]): row for row in read("calibration-conversations")}
    rows = table("alpha | whole conversations, splits")
    assert len(rows) == len(conversations.ALPHAS)
    for alpha, *cells in rows:
        whole, independent = (found[scores, alpha] for scores in conversations.SCORES)
        shown = [(whole, "splits"), (whole, "draws"), (independent, "draws")]
        assert cells == [f"{row[f'{kind}_rate']} / {row[f'{kind}_above_alpha']}" for row, kind in shown]


def test_the_simulation_is_as_near_as_the_page_says() -> None:
    for name, limits in {
        "load-compare-clock": {"0.2": (9, 3), "0.4": (9, 3), "0.6": (9, 3), "0.8": (6, 15)},
        "load-compare-forward": {"0.2": (4, 17), "0.4": (7, 8), "0.6": (7, 8), "0.8": (7, 8)},
    }.items():
        for row in read(name):
            for figure, limit in zip(("p50_ms", "p99_ms"), limits[row["load"]], strict=True):
                ratio = float(row[f"{figure}_simulated"]) / float(row[f"{figure}_measured"])
                assert abs(ratio - 1) < (limit + 0.6) / 100, (name, row["load"], figure)
            ratio = float(row["throughput_simulated"]) / float(row["throughput_measured"])
            assert abs(ratio - 1) < 0.01
