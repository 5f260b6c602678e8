import numpy as np
import pytest
from scipy.stats import betabinom, binom

from calibrate.evaluate.budget import splits_table
from calibrate.evaluate.delegation import proportion_interval
from ctd_guardrail.policy.guarantees import max_exceedances


def _table(d: np.ndarray, splits: int, **options: object) -> dict[str, dict[str, float]]:
    table = splits_table({"ctd": d}, np.arange(d.size), [0.2], delta=0.1, splits=splits, **options)  # type: ignore[arg-type]
    return {row["method"]: row for row in table.rows}


def test_rates_are_those_of_splitting_row_by_row() -> None:
    d = np.random.default_rng(0).integers(0, 12, 60) / 10.0  # with ties
    row = _table(d, 25, calibration_rows=40, seed=4)["ctd"]
    # The same splits, drawn as the table draws them.
    chosen = np.argpartition(np.random.default_rng(4).random((25, 60)), 39, axis=1)[:, :40]
    k = max_exceedances(40, 0.2, 0.1)
    rates = []
    for members in chosen:
        calibrating = np.isin(np.arange(60), members)
        threshold = np.sort(d[calibrating])[40 - 1 - k]
        rates.append((d[~calibrating] > threshold).mean())
    assert row["rate"] == pytest.approx(np.mean(rates))
    assert row["violations"] == np.mean(np.array(rates) > 0.2)
    assert (row["calibration_rows"], row["counted_rows"], row["k"]) == (40, 20, k)


def test_violations_follow_the_beta_binomial_law_and_plug_in_thresholds_do_not_hold() -> None:
    d = np.random.default_rng(1).normal(size=900)
    rows = _table(d, 500, calibration_rows=400)
    ctd, plug_in = rows["ctd"], rows["plug_in"]
    k = max_exceedances(400, 0.2, 0.1)
    assert ctd["exact"] == pytest.approx(binom.cdf(k, 400, 0.2))
    assert ctd["exact"] <= 0.1
    assert ctd["expected"] == pytest.approx(betabinom.sf(100, 500, k + 1, 400 - k))
    for row in rows.values():
        low, high = binom.ppf([1e-4, 1 - 1e-4], 500, row["expected"]) / 500
        assert low <= row["violations"] <= high
    assert ctd["violations"] < 0.2
    assert plug_in["violations"] > 0.35


def test_a_budget_that_cannot_be_certified_delegates_nothing() -> None:
    row = _table(np.arange(12.0), 9, calibration_rows=4)["ctd"]
    assert (row["k"], row["rate"], row["violations"], row["exact"]) == (-1, 0.0, 0.0, 0.0)


def test_one_row_of_each_cluster_counts_and_half_of_them_calibrate_by_default() -> None:
    d = np.repeat(np.random.default_rng(2).normal(size=50), 3)
    table = splits_table({"ctd": d}, np.repeat(np.arange(50), 3), [0.2], delta=0.1, splits=5)
    assert {(row["calibration_rows"], row["counted_rows"]) for row in table.rows} == {(25, 25)}


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 10), (50, 500)])
def test_the_interval_of_a_proportion_is_that_of_the_binomial_test(count: int, total: int) -> None:
    low, high = proportion_interval(count, total)
    # At its ends, the count is just as improbable as the level says.
    assert (low == 0.0) if count == 0 else binom.sf(count - 1, total, low) == pytest.approx(0.025)
    assert (high == 1.0) if count == total else binom.cdf(count, total, high) == pytest.approx(0.025)
