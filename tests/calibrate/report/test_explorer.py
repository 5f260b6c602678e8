import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from calibrate.config.file import PriceConfig
from calibrate.evaluate import ScoredRows, evaluate
from calibrate.report.explorer import Explorer, Settings, explore
from calibrate.report.page import explore_policy
from calibrate.report.words import NONE
from ctd_guardrail.policy.budget import Guarantee, certify
from ctd_guardrail.policy.store import Policy

CHECKED = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@pytest.mark.parametrize("guarantee", [Guarantee.EXACT, Guarantee.SIMULTANEOUS])
def test_figures_are_those_of_the_evaluation(
    explorer: Explorer, policy: Policy, tested: ScoredRows, guarantee: Guarantee
) -> None:
    evaluation = evaluate(tested, policy.calibration, delta=0.1, alphas=CHECKED, guarantee=guarantee)
    fields, lines = explorer.fields[guarantee], explorer.lines[guarantee]
    for alpha in CHECKED:
        index = explorer.alphas.index(alpha)
        for method in ("ctd", "uncertainty"):
            cell = evaluation.cell(method, alpha)
            assert fields[f"{method}_accuracy"][index] == f"{100 * cell.accuracy:.1f}%"
            assert fields[f"{method}_auroc"][index] == f"{cell.auroc:.3f}"
            assert fields[f"{method}_missed_harm"][index] == f"{100 * cell.missed_harm:.1f}%"
            assert fields[f"{method}_rate"][index] == f"{100 * cell.rate:.1f}%"
            assert lines["auroc"][method][index] == pytest.approx(cell.auroc, abs=5e-5)
        cell = evaluation.cell("ctd", alpha)
        assert fields["lambda"][index] == f"{cell.threshold:.4f}"
        assert cell.group_rates is not None
        for number, group in enumerate(explorer.groups):
            assert fields[f"group_{number}"][index] == f"{100 * cell.group_rates[group]:.1f}%"
        assert lines["accuracy"]["oracle"][index] == pytest.approx(
            100 * evaluation.cell("oracle", alpha).accuracy, abs=0.01
        )
    for method in ("probe", "expert"):
        cell = evaluation.cell(method, 0.1)
        assert explorer.fixed[f"{method}_accuracy"] == f"{100 * cell.accuracy:.1f}%"
        assert explorer.fixed[f"{method}_auroc"] == f"{cell.auroc:.3f}"


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
    settings = Settings(alpha=0.2, delta=0.1)
    pair = [explore(rows, policy.calibration, settings).at_start() for rows in (alone, twice)]
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
        "40 calibration rows cannot certify 5%: it takes 45. The smallest budget that these rows can certify is 5.59%."
    )
    assert explorer.fields["exact"]["problem"][explorer.alphas.index(0.06)] == ""


def test_costs_are_calls_times_the_price(tested: ScoredRows, policy: Policy, explorer: Explorer) -> None:
    start = explorer.at_start()
    certificate = certify(policy.calibration.d, 0.2, 0.1)
    assert start["cost"] == f"{1000 * certificate.mean_rate * 0.002:.2f}"
    assert (start["probe_cost"], start["expert_cost"]) == ("0.00", "2.00")
    assert explore(tested, policy.calibration, Settings(0.2, 0.1)).at_start()["cost"] == NONE
    cheap = explore(tested, policy.calibration, Settings(0.2, 0.1, prices=PriceConfig(expert_call=1e-6)))
    assert math.isclose(float(cheap.at_start()["cost"]), 1000 * certificate.mean_rate * 1e-6, rel_tol=0.05)


def test_a_recalibrated_policy_is_shown_with_the_threshold_in_force(policy: Policy, tested: ScoredRows) -> None:
    traffic = np.sort(np.random.default_rng(0).normal(size=500))
    record = {"file": "t", "sha256": "0", "rows": 500, "alpha": 0.2, "delta": 0.1, "delta_spent": 0.06}
    record |= {"k": 80, "threshold": 0.9, "created_at": "2026-01-01T00:00:00Z"}
    written = policy.manifest.model_dump() | {"recalibrations": [record]}
    manifest = type(policy.manifest).model_validate(written)
    start = explore_policy(replace(policy, manifest=manifest, traffic=traffic), tested).at_start()
    certificate = certify(traffic, 0.2, 6 * 0.1 / math.pi**2)
    assert (start["lambda"], start["k"]) == (f"{certificate.threshold:.4f}", str(certificate.k))


def test_the_data_of_the_page_is_strict_json(explorer: Explorer) -> None:
    data = json.loads(json.dumps(explorer.to_dict(), allow_nan=False))
    columns = [column for fields in data["fields"].values() for column in fields.values()]
    assert {len(column) for column in columns} == {len(explorer.alphas)}
    assert explorer.alphas[explorer.start] == 0.2
    assert list(explorer.alphas) == sorted(set(explorer.alphas))
