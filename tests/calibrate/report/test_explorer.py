import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calibrate.config.file import PriceConfig
from calibrate.evaluate.figures import FIGURES
from calibrate.evaluate.grid import ALPHAS, Grid
from calibrate.evaluate.record import record_grid
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.study import measure_study
from calibrate.report.explorer import GUARANTEES, Explorer, explore
from calibrate.report.page import explore_policy
from calibrate.report.words import NONE
from ctd_guardrail.policy.budget import Guarantee, certify
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.probes.merge import Merge


def _explore(rows: ScoredRows, policy: Policy, **options: Any) -> Explorer:
    grids = {each: Grid(rows, policy.calibration, delta=0.1, guarantee=each) for each in GUARANTEES}
    return explore(grids, alpha=0.2, **options)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_record_study_and_explorer_agree_on_every_cell_of_the_grid(
    explorer: Explorer, policy: Policy, tested: ScoredRows, guarantee: Guarantee
) -> None:
    grid = Grid(tested, policy.calibration, delta=0.1, guarantee=guarantee)
    record = {(cell["method"], cell["alpha"]): cell for cell in record_grid(grid, ALPHAS)["cells"]}
    cascade = measure_study(grid, alpha=0.2, budgets=ALPHAS, splits=2).tables["cascade"]
    fields, lines = explorer.fields[guarantee], explorer.lines[guarantee]
    for alpha in ALPHAS:
        index = explorer.alphas.index(alpha)
        shown = {name: texts[index] for name, texts in fields.items()} | dict(explorer.fixed)
        for method in ("probe", "uncertainty", "ctd", "expert"):
            cell = record[method, alpha]
            (row,) = cascade.where(method=method, alpha=alpha)
            assert {name: row[name] for name in (*FIGURES, "rate")} == {name: cell[name] for name in (*FIGURES, "rate")}
            assert shown[f"{method}_auroc"] == f"{cell['auroc']:.3f}"
            assert shown[f"{method}_auroc_se"] == f"± {row['auroc_se']:.3f}"
            for name in ("accuracy", "missed_harm"):
                assert shown[f"{method}_{name}"] == f"{100 * cell[name]:.1f}%"
                assert shown[f"{method}_{name}_se"] == f"± {100 * row[f'{name}_se']:.1f}"
            assert shown[f"{method}_rate"] == f"{100 * cell['rate']:.1f}%"
            assert lines["auroc"][method][index] == pytest.approx(cell["auroc"], abs=5e-5)
        (row,) = cascade.where(method="ctd", alpha=alpha)
        assert shown["lambda"] == f"{record['ctd', alpha]['threshold']:.4f}" == f"{row['threshold']:.4f}"
        for number, group in enumerate(explorer.groups):
            assert shown[f"group_{number}"] == f"{100 * record['ctd', alpha]['group_rates'][group]:.1f}%"
        assert lines["accuracy"]["oracle"][index] == pytest.approx(100 * record["oracle", alpha]["accuracy"], abs=0.01)


def test_the_expert_alone_is_not_merged(policy: Policy, tested: ScoredRows) -> None:
    averaged = replace(tested, merge=Merge(kind="average"))
    both = [_explore(rows, policy) for rows in (tested, averaged)]
    assert both[0].fixed == both[1].fixed
    assert both[0].fields["exact"]["ctd_auroc"] != both[1].fields["exact"]["ctd_auroc"]


def test_false_alarms_and_the_paired_gain_by_hand(tested: ScoredRows, policy: Policy, explorer: Explorer) -> None:
    index = explorer.alphas.index(0.3)
    threshold = certify(policy.calibration.d, 0.3, 0.1).threshold
    unsure = np.sort(-np.abs(policy.calibration.p - 0.5))
    scores = {
        "ctd": np.where(tested.d > threshold, tested.expert, tested.p),
        "uncertainty": np.where(-np.abs(tested.p - 0.5) > certify(unsure, 0.3, 0.1).threshold, tested.expert, tested.p),
    }
    fields = explorer.fields["exact"]
    right = {}
    for method, score in scores.items():
        alarms = (score[tested.label == 0] >= 0.5).mean()
        assert fields[f"{method}_false_alarms"][index] == f"{100 * alarms:.1f}%"
        right[method] = ((score >= 0.5) == tested.label).mean()
    gain, error = map(float, fields["gain"][index].split(" ± "))
    assert gain == pytest.approx(100 * (right["ctd"] - right["uncertainty"]), abs=0.051)
    assert 0 < error < 5


def test_clusters_of_dependent_rows_widen_the_errors(tested: ScoredRows, policy: Policy) -> None:
    twice = replace(
        tested,
        **{name: np.repeat(getattr(tested, name), 2) for name in ("p", "d", "expert", "label")},
        group=None,
        cluster=np.repeat(np.arange(tested.label.size), 2),
    )
    alone = replace(tested, group=None, cluster=None)
    pair = [_explore(rows, policy).at_start() for rows in (alone, twice)]
    assert pair[0]["ctd_accuracy_se"] == pair[1]["ctd_accuracy_se"]


def test_a_guarantee_that_says_nothing_leaves_a_gap_and_the_reason(explorer: Explorer) -> None:
    fields, lines = explorer.fields["simultaneous"], explorer.lines["simultaneous"]
    for alpha in (0.005, 0.56):
        index = explorer.alphas.index(alpha)
        assert "from 1% to 55% only" in fields["problem"][index]
        assert {fields[name][index] for name in ("lambda", "rate", "calls", "ctd_accuracy", "gain", "group_0")} == {
            NONE
        }
        assert lines["accuracy"]["ctd"][index] is None
        assert lines["rate"]["expected"][index] is None


def test_too_few_rows_are_named(make_policy: Callable[..., Policy], tested: ScoredRows) -> None:
    explorer = explore_policy(make_policy(40), tested)
    assert explorer.fields["exact"]["problem"][explorer.alphas.index(0.05)] == (
        "40 calibration rows cannot certify 5%: it takes 45. The smallest budget that these rows can certify is 5.6%."
    )
    assert explorer.fields["exact"]["problem"][explorer.alphas.index(0.06)] == ""


def test_costs_are_calls_times_the_price(tested: ScoredRows, policy: Policy, explorer: Explorer) -> None:
    start = explorer.at_start()
    certificate = certify(policy.calibration.d, 0.2, 0.1)
    assert start["cost"] == f"{1000 * certificate.mean_rate * 0.002:.2f}"
    assert (start["probe_cost"], start["expert_cost"]) == ("0.00", "2.00")
    assert _explore(tested, policy).at_start()["cost"] == NONE
    cheap = _explore(tested, policy, prices=PriceConfig(expert_call=1e-6))
    assert math.isclose(float(cheap.at_start()["cost"]), 1000 * certificate.mean_rate * 1e-6, rel_tol=0.05)


def test_a_recalibrated_policy_is_shown_with_the_threshold_in_force(policy: Policy, tested: ScoredRows) -> None:
    turns = TurnScores.of(np.random.default_rng(0).normal(size=500))
    record = {"file": "t", "sha256": "0", "rows": 500, "alpha": 0.2, "delta": 0.1, "delta_spent": 0.06}
    record |= {"k": 80, "threshold": 0.9, "created_at": "2026-01-01T00:00:00Z"}
    written = policy.manifest.model_dump() | {"recalibrations": [record]}
    manifest = type(policy.manifest).model_validate(written)
    start = explore_policy(replace(policy, manifest=manifest, turns=turns), tested).at_start()
    certificate = certify(turns, 0.2, 6 * 0.1 / math.pi**2)
    assert (start["lambda"], start["k"]) == (f"{certificate.threshold:.4f}", str(certificate.k))


def test_the_data_of_the_page_is_strict_json(explorer: Explorer) -> None:
    data = json.loads(json.dumps(explorer.to_dict(), allow_nan=False))
    columns = [column for fields in data["fields"].values() for column in fields.values()]
    assert {len(column) for column in columns} == {len(explorer.alphas)}
    assert explorer.alphas[explorer.start] == 0.2
    assert list(explorer.alphas) == sorted(set(explorer.alphas))
