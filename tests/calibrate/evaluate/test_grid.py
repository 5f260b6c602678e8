import json
from dataclasses import replace

import numpy as np
import pytest

from calibrate.evaluate.grid import ALPHAS, Cell, Grid
from calibrate.evaluate.methods import METHODS
from calibrate.evaluate.record import record_grid
from calibrate.evaluate.rows import ScoredRows
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


def value(cell: Cell, figure: str) -> float:
    return cell.figures[figure].value


def gain(cell: Cell, rows: ScoredRows) -> float:
    """Mean of v over all rows: what the budget has bought."""
    return float((rows.value * cell.delegated).mean())


def scores_of(rows: ScoredRows) -> CalibrationScores:
    return CalibrationScores.from_rows(d=rows.d, p=rows.p, expert=rows.expert, label=rows.label)


def test_probe_and_expert_by_hand() -> None:
    grid = Grid(TEN, calibration(), delta=0.1)
    probe, expert = grid.cell("probe", 0.2), grid.cell("expert", 0.2)
    assert [value(probe, name) for name in ("rate", "accuracy", "missed_harm")] == [0.0, 0.7, 0.6]
    assert [value(expert, name) for name in ("rate", "accuracy", "missed_harm")] == [1.0, 0.9, 0.2]
    # Of 25 pairs the expert misorders those of row 3 (.2) with row 8 (.4).
    assert value(expert, "auroc") == 24 / 25


def test_the_oracle_takes_the_largest_true_values() -> None:
    grid = Grid(TEN, calibration(), delta=0.1)
    oracle = grid.cell("oracle", 0.3)
    assert value(oracle, "rate") == 0.3
    assert gain(oracle, TEN) == pytest.approx((0.8 + 0.7 + 0.5) / 10)
    assert [value(oracle, name) for name in ("accuracy", "auroc", "missed_harm")] == [1.0, 1.0, 0.0]
    assert grid.group_rates(oracle.delegated) == {"a": 0.6, "b": 0.0}


def test_ctd_delegates_what_lies_strictly_above_the_threshold() -> None:
    # One calibration score is the threshold itself, and two test rows lie on it.
    scores = replace(calibration(), d=np.full(200, 0.1))
    ctd = Grid(TEN, scores, delta=0.1).cell("ctd", 0.3)
    assert ctd.threshold == 0.1
    assert value(ctd, "rate") == 0.3
    assert value(ctd, "accuracy") == 1.0


def test_uncertainty_is_certified_on_the_same_rows_at_the_same_levels() -> None:
    scores = calibration()
    grid = Grid(TEN, scores, delta=0.1)
    k = max_exceedances(200, 0.3, 0.1)
    uncertainty = grid.cell("uncertainty", 0.3)
    assert uncertainty.k == grid.cell("ctd", 0.3).k == k
    assert uncertainty.threshold == np.sort(-np.abs(scores.p - 0.5))[200 - 1 - k]
    # It asks about the two rows that the probe is unsure of, and repairs none of the three that it gets wrong.
    assert value(uncertainty, "rate") == 0.2
    assert value(uncertainty, "accuracy") == 0.7


def test_random_spends_exactly_alpha() -> None:
    grid = Grid(world(997, 0), calibration(), delta=0.1)
    for alpha in ALPHAS:
        assert value(grid.cell("random", alpha), "rate") <= alpha < value(grid.cell("random", alpha), "rate") + 1 / 997


def test_a_budget_that_cannot_be_certified_delegates_nothing() -> None:
    grid = Grid(TEN, calibration(n=20), delta=0.1)
    for method in ("ctd", "uncertainty"):
        cell = grid.cell(method, 0.05)
        assert (value(cell, "rate"), cell.threshold, cell.k) == (0.0, None, None)
        assert value(cell, "accuracy") == value(grid.cell("probe", 0.05), "accuracy")


def test_nothing_gains_more_than_the_oracle_within_its_budget() -> None:
    rows = world(3000, 1)
    grid = Grid(rows, scores_of(world(1000, 2)), delta=0.1)
    for alpha in ALPHAS:
        oracle = grid.cell("oracle", alpha)
        for method in ("random", "uncertainty", "ctd"):
            cell = grid.cell(method, alpha)
            assert value(cell, "rate") <= value(oracle, "rate")
            assert gain(cell, rows) < gain(oracle, rows)
        assert value(grid.cell("ctd", alpha), "auroc") > value(grid.cell("random", alpha), "auroc")


def test_realised_rates_stay_within_the_budget_but_for_delta_of_the_draws() -> None:
    population = world(5000, 3)
    grids = [Grid(population, scores_of(world(300, seed)), delta=0.1) for seed in range(100, 200)]
    for method in ("ctd", "uncertainty"):
        # 21 of 100 at a true rate of .1 has probability 1e-3.
        assert sum(grid.methods.delegate(method, 0.2).rows.mean() > 0.2 for grid in grids) < 21


def test_group_rates_add_up_to_the_rate() -> None:
    rows = replace(world(600, 4), group=["x"] * 200 + ["y"] * 400)
    grid = Grid(rows, scores_of(world(300, 5)), delta=0.1)
    cell = grid.cell("ctd", 0.2)
    rates = grid.group_rates(cell.delegated)
    assert (rates["x"] + 2 * rates["y"]) / 3 == pytest.approx(value(cell, "rate"))


def test_the_record_is_json_with_a_cell_for_every_method_and_budget() -> None:
    grid = Grid(TEN, scores_of(world(200, 1)), delta=0.1)
    record = record_grid(grid, ALPHAS)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [(cell["method"], cell["alpha"]) for cell in record["cells"]] == [(m, a) for a in ALPHAS for m in METHODS]
    assert (record["rows"], record["unsafe"]) == (10, 5)
    (oracle,) = [cell for cell in record["cells"] if (cell["method"], cell["alpha"]) == ("oracle", 0.3)]
    assert oracle["gain"] == pytest.approx((0.8 + 0.7 + 0.5) / 3)
    (probe,) = [cell for cell in record["cells"] if (cell["method"], cell["alpha"]) == ("probe", 0.3)]
    assert probe["gain"] == 0.0
    assert probe["group_rates"] == {"a": 0.0, "b": 0.0}
    bare = record_grid(Grid(replace(TEN, group=None), calibration(), delta=0.1), [0.2])
    assert {cell["group_rates"] for cell in bare["cells"]} == {None}


def test_the_same_seed_gives_the_same_figures() -> None:
    one, other, third = (
        record_grid(Grid(world(300, 0), calibration(), delta=0.1, seed=seed), ALPHAS) for seed in (1, 1, 2)
    )
    assert one == other
    changed = {cell["method"] for cell, again in zip(one["cells"], third["cells"], strict=True) if cell != again}
    assert changed == {"random"}


def test_kept_figures_are_those_of_the_cell_that_is_read() -> None:
    rows = world(150, 6)
    grid = Grid(rows, scores_of(world(900, 7)), delta=0.1)
    # More sets of delegated rows than the grid keeps, and the first again.
    alphas = [i / 100 for i in (*range(5, 95), 5, 6)]
    for alpha in alphas:
        cell = grid.cell("oracle", alpha)
        assert value(cell, "rate") == cell.delegated.mean()
        assert value(cell, "brier") == np.mean((rows.cascade_score(cell.delegated) - rows.label) ** 2)


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
        record_grid(Grid(replace(TEN, **change), calibration(), delta=0.1), ALPHAS)


def test_an_alpha_that_is_chosen_after_looking_costs_more_of_the_budget() -> None:
    rows, scores = world(3000, 1), scores_of(world(1000, 2))
    exact, simultaneous = (
        Grid(rows, scores, delta=0.1, guarantee=guarantee) for guarantee in (Guarantee.EXACT, Guarantee.SIMULTANEOUS)
    )
    for alpha in ALPHAS:
        certificate = certify(scores.d, alpha, 0.1, guarantee=Guarantee.SIMULTANEOUS)
        cell = simultaneous.cell("ctd", alpha)
        assert (cell.threshold, cell.k) == (certificate.threshold, certificate.k)
        assert value(cell, "rate") < value(exact.cell("ctd", alpha), "rate")
        assert np.array_equal(simultaneous.cell("oracle", alpha).delegated, exact.cell("oracle", alpha).delegated)
