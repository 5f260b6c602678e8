"""Each figure's numbers against brute force."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from calibrate.evaluate.figures import FIGURES, measure
from calibrate.evaluate.grid import ALPHAS, Grid
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import BUDGETS, Study, measure_study
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.probes.merge import Merge

World = Callable[..., ScoredRows]


@pytest.fixture(scope="module")
def rows(world: World) -> ScoredRows:
    return world(300)


@pytest.fixture(scope="module")
def made(rows: ScoredRows, calibration: CalibrationScores) -> Study:
    return measure_study(Grid(rows, calibration, delta=0.1), alpha=0.25, splits=40)


@pytest.fixture(scope="module")
def methods(rows: ScoredRows, calibration: CalibrationScores) -> Methods:
    return Methods(rows, calibration, delta=0.1)


def test_it_is_strict_json_and_every_column_is_explained(made: Study) -> None:
    written = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert written["spearman"] == made.spearman
    for table in written["tables"].values():
        assert table["rows"]
        for row in table["rows"]:
            assert set(row) == {*table["keys"], *table["values"]}
        keys = [tuple(row[key] for key in table["keys"]) for row in table["rows"]]
        assert len(set(keys)) == len(keys)


def test_sizes_and_rank_correlation(made: Study, rows: ScoredRows) -> None:
    assert (made.rows, made.unsafe, made.clusters) == (300, rows.label.sum(), np.unique(rows.clusters).size)
    assert made.spearman == pytest.approx(spearmanr(rows.d, rows.value).statistic)


def test_cascade(made: Study, rows: ScoredRows, methods: Methods) -> None:
    table = made.tables["cascade"]
    assert {row["alpha"] for row in table.rows} == {*BUDGETS, *ALPHAS, 0.25}
    for row in table.rows:
        delegated = methods.delegate(row["method"], row["alpha"]).rows
        figures = measure(rows.label, np.where(delegated, rows.expert, rows.p), rows.clusters, tau=0.5)
        assert row["rate"] == delegated.mean()
        assert [row[figure] for figure in FIGURES] == [figures[figure].value for figure in FIGURES]


def test_area_is_by_the_trapezoid_rule_from_nothing(made: Study) -> None:
    cascade = made.tables["cascade"]
    budgets = sorted({row["alpha"] for row in cascade.rows})

    def area(method: str, figure: str, sign: float) -> float:
        probe = cascade.where(method="probe", alpha=budgets[0])[0][figure]
        curve = [0.0, *(sign * (cascade.where(method=method, alpha=a)[0][figure] - probe) for a in budgets)]
        grid = [0.0, *budgets]
        return sum((grid[i + 1] - grid[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(len(budgets)))

    for row in made.tables["faic"].rows:
        sign = -1.0 if row["figure"] == "brier" else 1.0
        assert row["area"] == pytest.approx(area(row["method"], row["figure"], sign))
        assert row["share"] == pytest.approx(row["area"] / area("oracle", row["figure"], sign))


def test_a_perfect_signal_wins_the_whole_area_whatever_the_rows(world: World, calibration: CalibrationScores) -> None:
    # Numerator and denominator move together: the share has hardly an error, although both areas do.
    rows = world(300)
    perfect = replace(rows, d=rows.value)
    everything = CalibrationScores.from_rows(d=np.sort(rows.value), p=rows.p)
    made = measure_study(Grid(perfect, everything, delta=0.4999), alpha=0.2, splits=2)
    (row,) = made.tables["faic"].where(figure="auroc", method="ctd")
    assert row["share"] == pytest.approx(1.0, abs=0.05)
    assert row["share_se"] < 0.02


def test_gain_is_the_mean_of_v_over_the_top(made: Study, rows: ScoredRows) -> None:
    signals = {"uncertainty": -np.abs(rows.p - 0.5), "ctd": rows.d, "oracle": rows.value}
    for row in made.tables["gain"].rows:
        if row["signal"] in signals:
            top = sorted(range(300), key=lambda i, s=signals[row["signal"]]: -s[i])[: int(300 * row["share"] + 1e-9)]
            assert row["value"] == pytest.approx(rows.value[top].mean())
    assert len({row["value"] for row in made.tables["gain"].where(share=1.0)}) == 1


def test_groups_and_composition(made: Study, rows: ScoredRows, methods: Methods) -> None:
    group = np.array(rows.group)
    for row in made.tables["groups"].rows:
        mine = group == row["group"]
        assert (row["rows"], row["d"], row["value"]) == (mine.sum(), rows.d[mine].mean(), rows.value[mine].mean())
    for row in made.tables["composition"].rows:
        delegated = methods.delegate(row["method"], row["alpha"]).rows
        mine = group == row["group"]
        assert row["rate"] == delegated[mine].mean()
        assert row["share"] == pytest.approx((delegated & mine).sum() / delegated.sum())


def test_bins_of_d_hold_every_row_once_and_are_ordered(made: Study, rows: ScoredRows) -> None:
    bins = made.tables["reliability"].rows
    assert sum(row["rows"] for row in bins) == 300
    assert [row["d"] for row in bins] == sorted(row["d"] for row in bins)
    assert sum(row["rows"] * row["value"] for row in bins) == pytest.approx(rows.value.sum())
    order = np.argsort(rows.d)
    assert bins[0]["value"] == pytest.approx(rows.value[order[: bins[0]["rows"]]].mean())


def test_what_the_expert_fixes_and_spoils(made: Study, rows: ScoredRows) -> None:
    probe, expert = ((score >= 0.5) == (rows.label == 1) for score in (rows.p, rows.expert))
    bins = made.tables["fixes"].rows
    assert sum(row["rows"] * row["fixes"] for row in bins) == pytest.approx((~probe & expert).sum())
    assert sum(row["rows"] * row["spoils"] for row in bins) == pytest.approx((probe & ~expert).sum())
    for row in bins:
        assert 0 <= row["fixes_low"] <= row["fixes"] <= row["fixes_high"] <= 1


def test_failures_are_what_they_are_called(made: Study, rows: ScoredRows, methods: Methods) -> None:
    table = made.tables["failures"]
    assert {row["case"] for row in table.rows} >= {"uncertainty_wasted", "uncertainty_missed"}
    for row in table.rows:
        name, case = row["case"].split("_")
        i = int(row["row"]) - 1
        probe_right = (rows.p[i] >= 0.5) == (rows.label[i] == 1)
        assert methods.delegate(name, 0.25).rows[i] == (case == "wasted") == row[f"{name}_delegates"]
        assert probe_right == (case == "wasted")
        assert (row["p"], row["expert"], row["d"]) == (rows.p[i], rows.expert[i], rows.d[i])
    missed = [row["value"] for row in table.where(case="uncertainty_missed")]
    assert missed == sorted(missed, reverse=True)


def test_sensitivity_runs_from_no_row_to_nearly_all(made: Study) -> None:
    rates = [row["rate"] for row in made.tables["sensitivity"].rows]
    assert rates == sorted(rates)
    assert rates[0] == 0.0
    assert rates[-1] > 0.99


def test_merges_judge_the_same_rows(made: Study, rows: ScoredRows, methods: Methods) -> None:
    table = made.tables["merges"]
    for row in table.where(merge="average"):
        delegated = methods.delegate("ctd", row["alpha"]).rows
        score = np.where(delegated, (rows.p + rows.expert) / 2, rows.p)
        assert row["brier"] == pytest.approx(np.mean((score - rows.label) ** 2))
    assert [row["auroc"] for row in table.where(merge="policy")] == [
        row["auroc"] for row in table.where(merge="replace")
    ]
    # Stacking knows that the expert is better, and how sure it may be.
    for stacked, replaced in zip(table.where(merge="stacking"), table.where(merge="replace"), strict=True):
        assert stacked["brier"] < replaced["brier"] + 0.01


def test_the_merge_of_the_policy_is_what_is_judged(world: World, calibration: CalibrationScores) -> None:
    rows = replace(world(300), merge=Merge(kind="average"))
    assert np.allclose(rows.value, world(300).value / 2)
    cascade = measure_study(Grid(rows, calibration, delta=0.1), alpha=0.25, splits=2).tables["cascade"]
    (row,) = cascade.where(method="expert", alpha=0.25)
    assert row["brier"] == pytest.approx(np.mean(((rows.p + rows.expert) / 2 - rows.label) ** 2))


def test_without_groups_or_labels_there_is_less_to_show(world: World, calibration: CalibrationScores) -> None:
    rows = replace(world(300), group=None, cluster=None)
    bare = CalibrationScores(calibration.d, calibration.p)
    made = measure_study(Grid(rows, bare, delta=0.1), alpha=0.25, splits=2)
    assert made.clusters == 300
    assert [row["group"] for row in made.tables["groups"].rows] == ["all"]
    assert not made.tables["merges"].where(merge="stacking")
