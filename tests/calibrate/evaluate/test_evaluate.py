import json
from dataclasses import replace

import numpy as np
import pytest

from calibrate.evaluate import ALPHAS, METHODS, ScoredRows, evaluate
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import Guarantee, certify, max_exceedances
from ctd_guardrail.policy.store import CalibrationScores

# Ten rows: the probe is sure of all but the last two, and wrong about the first three; the expert is right about all
# but row 3.
LABEL = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1], float)
P = np.array([0.1, 0.2, 0.3, 0.9, 0.1, 0.1, 0.2, 0.2, 0.45, 0.55])
EXPERT = np.array([0.9, 0.9, 0.8, 0.2, 0.1, 0.1, 0.1, 0.1, 0.4, 0.6])
D = np.array([0.8, 0.7, 0.5, -0.7, 0.0, 0.0, 0.1, 0.1, 0.05, 0.06])
TEN = ScoredRows(P, D, EXPERT, LABEL, list("aaaaabbbbb"))


def calibration(n: int = 200, seed: int = 0) -> CalibrationScores:
    rng = np.random.default_rng(seed)
    return CalibrationScores.from_rows(d=rng.uniform(-1, 1, n), p=rng.uniform(0, 1, n))


def world(n: int, seed: int) -> ScoredRows:
    """Rows on which d knows half of v."""
    rng = np.random.default_rng(seed)
    p, expert = rng.random(n), rng.random(n)
    label = (rng.random(n) < 0.5).astype(float)
    value = (2 * label - 1) * (expert - p)
    return ScoredRows(p, 0.5 * value + 0.3 * rng.normal(size=n), expert, label)


def scores_of(rows: ScoredRows) -> CalibrationScores:
    return CalibrationScores.from_rows(d=rows.d, p=rows.p, expert=rows.expert, label=rows.label)


def test_probe_and_expert_by_hand() -> None:
    evaluation = evaluate(TEN, calibration(), delta=0.1, alphas=[0.2])
    probe, expert = evaluation.cell("probe", 0.2), evaluation.cell("expert", 0.2)
    assert (probe.rate, probe.accuracy, probe.missed_harm) == (0.0, 0.7, 0.6)
    assert (expert.rate, expert.accuracy, expert.missed_harm) == (1.0, 0.9, 0.2)
    # Of 25 pairs the expert misorders those of row 3 (.2) with row 8 (.4).
    assert expert.auroc == 24 / 25
    assert probe.gain == 0.0
    assert expert.gain == pytest.approx(TEN.value.mean())


def test_the_oracle_takes_the_largest_true_values() -> None:
    oracle = evaluate(TEN, calibration(), delta=0.1, alphas=[0.3]).cell("oracle", 0.3)
    assert oracle.rate == 0.3
    assert oracle.gain == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    assert (oracle.accuracy, oracle.auroc, oracle.missed_harm) == (1.0, 1.0, 0.0)
    assert oracle.group_rates == {"a": 0.6, "b": 0.0}


def test_ctd_delegates_what_lies_strictly_above_the_threshold() -> None:
    # One calibration score is the threshold itself, and two test rows lie on it.
    scores = replace(calibration(), d=np.full(200, 0.1))
    ctd = evaluate(TEN, scores, delta=0.1, alphas=[0.3]).cell("ctd", 0.3)
    assert ctd.threshold == 0.1
    assert ctd.rate == 0.3
    assert ctd.accuracy == 1.0


def test_uncertainty_is_certified_on_the_same_rows_at_the_same_levels() -> None:
    scores = calibration()
    evaluation = evaluate(TEN, scores, delta=0.1, alphas=[0.3])
    k = max_exceedances(200, 0.3, 0.1)
    uncertainty = evaluation.cell("uncertainty", 0.3)
    assert uncertainty.k == evaluation.cell("ctd", 0.3).k == k
    assert uncertainty.threshold == np.sort(-np.abs(scores.p - 0.5))[200 - 1 - k]
    # It asks about the two rows that the probe is unsure of, and repairs none of the three that it gets wrong.
    assert uncertainty.rate == 0.2
    assert uncertainty.accuracy == 0.7


def test_random_spends_exactly_alpha() -> None:
    rows = world(997, 0)
    for alpha in ALPHAS:
        cell = evaluate(rows, calibration(), delta=0.1, alphas=[alpha]).cell("random", alpha)
        assert cell.rate <= alpha < cell.rate + 1 / 997


def test_a_budget_that_cannot_be_certified_delegates_nothing() -> None:
    evaluation = evaluate(TEN, calibration(n=20), delta=0.1, alphas=[0.05])
    for method in ("ctd", "uncertainty"):
        cell = evaluation.cell(method, 0.05)
        assert (cell.rate, cell.threshold, cell.k) == (0.0, None, None)
        assert cell.accuracy == evaluation.cell("probe", 0.05).accuracy


def test_nothing_gains_more_than_the_oracle_within_its_budget() -> None:
    evaluation = evaluate(world(3000, 1), scores_of(world(1000, 2)), delta=0.1)
    for alpha in ALPHAS:
        oracle = evaluation.cell("oracle", alpha)
        for method in ("random", "uncertainty", "ctd"):
            cell = evaluation.cell(method, alpha)
            assert cell.rate <= oracle.rate
            assert cell.gain * cell.rate < oracle.gain * oracle.rate
        assert evaluation.cell("ctd", alpha).auroc > evaluation.cell("random", alpha).auroc


def test_realised_rates_stay_within_the_budget_but_for_delta_of_the_draws() -> None:
    population = world(5000, 3)
    draws = [evaluate(population, scores_of(world(300, seed)), delta=0.1, alphas=[0.2]) for seed in range(100, 200)]
    for method in ("ctd", "uncertainty"):
        # 21 of 100 at a true rate of .1 has probability 1e-3.
        assert sum(draw.cell(method, 0.2).rate > 0.2 for draw in draws) < 21


def test_group_rates_add_up_to_the_rate() -> None:
    rows = replace(world(600, 4), group=["x"] * 200 + ["y"] * 400)
    cell = evaluate(rows, scores_of(world(300, 5)), delta=0.1, alphas=[0.2]).cell("ctd", 0.2)
    assert cell.group_rates is not None
    assert (cell.group_rates["x"] + 2 * cell.group_rates["y"]) / 3 == pytest.approx(cell.rate)


def test_the_result_is_json_with_a_cell_for_every_method_and_budget() -> None:
    evaluation = evaluate(world(200, 0), scores_of(world(200, 1)), delta=0.1)
    written = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert [(cell["method"], cell["alpha"]) for cell in written["cells"]] == [(m, a) for a in ALPHAS for m in METHODS]


def test_the_same_seed_gives_the_same_figures() -> None:
    one, other, third = (evaluate(world(300, 0), calibration(), delta=0.1, seed=seed) for seed in (1, 1, 2))
    assert one == other
    assert one.cell("random", 0.2) != third.cell("random", 0.2)
    assert one.cell("ctd", 0.2) == third.cell("ctd", 0.2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"d": np.zeros(9)}, "column d has shape"),
        ({"p": np.full(10, np.nan)}, "column p holds values"),
        ({"label": np.ones(10)}, "rows of both labels"),
        ({"group": ["a"]}, "1 groups stand beside 10"),
    ],
)
def test_broken_rows_are_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        evaluate(replace(TEN, **change), calibration(), delta=0.1)


def test_an_alpha_that_is_chosen_after_looking_costs_more_of_the_budget() -> None:
    rows, scores = world(3000, 1), scores_of(world(1000, 2))
    exact, simultaneous = (
        evaluate(rows, scores, delta=0.1, guarantee=guarantee)
        for guarantee in (Guarantee.EXACT, Guarantee.SIMULTANEOUS)
    )
    for alpha in ALPHAS:
        certificate = certify(scores.d, alpha, 0.1, guarantee=Guarantee.SIMULTANEOUS)
        cell = simultaneous.cell("ctd", alpha)
        assert (cell.threshold, cell.k) == (certificate.threshold, certificate.k)
        assert cell.rate < exact.cell("ctd", alpha).rate
        assert simultaneous.cell("oracle", alpha) == exact.cell("oracle", alpha)
