from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from calibrate.risk.pvalues import betting_p, binomial_p, hoeffding_bentkus_p, kl_p, smallest_level, wealth_p
from ctd_guardrail.errors import DataError

LEVELS = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), LEVELS)
def test_the_exact_p_value_is_tighter_than_every_bound(count_of_n: tuple[int, int], level: float) -> None:
    exact = binomial_p(*count_of_n, level)
    # Near the smallest number of this type, the two disagree in the sixth digit.
    assert exact == pytest.approx(binom.cdf(*count_of_n, level), rel=1e-9, abs=1e-250)
    assert exact <= hoeffding_bentkus_p(*count_of_n, level) * (1 + 1e-9) or count_of_n[0] / count_of_n[1] >= level


def test_formulas_by_hand() -> None:
    divergence = 0.1 * math.log(0.1 / 0.2) + 0.9 * math.log(0.9 / 0.8)
    assert kl_p(10.0, 100, 0.2) == pytest.approx(math.exp(-100 * divergence))
    assert hoeffding_bentkus_p(9.3, 100, 0.2) == pytest.approx(
        min(kl_p(9.3, 100, 0.2), math.e * binom.cdf(10, 100, 0.2))
    )
    assert hoeffding_bentkus_p(90.0, 100, 0.2) == 1.0


@pytest.mark.parametrize("p", [binomial_p, kl_p, hoeffding_bentkus_p])
def test_no_losses_are_no_evidence(p: object) -> None:
    assert p(0, 0, 0.1) == 1.0  # type: ignore[operator]
    assert betting_p(np.empty(0), 0.1, delta=0.05) == 1.0


def test_betting_is_the_running_product_of_its_definition() -> None:
    losses = np.random.default_rng(3).random(50) ** 2
    level, delta, n = 0.5, 0.05, 50
    wealth, best, seen, squares = 1.0, 1.0, 0.0, 0.0
    spread = 0.25
    for i, loss in enumerate(losses, start=1):
        bet = min(0.75 / (1 - level), math.sqrt(2 * math.log(1 / delta) / (n * spread)))
        wealth *= 1 - bet * (loss - level)
        best = max(best, wealth)
        seen += loss
        squares += (loss - (0.5 + seen) / (i + 1)) ** 2
        spread = (0.25 + squares) / (i + 1)
    assert wealth_p(losses, level, delta) == pytest.approx(1 / best)


def test_betting_does_not_depend_on_the_order_that_losses_come_in() -> None:
    rng = np.random.default_rng(0)
    losses = np.sort((rng.random(200) < 0.1).astype(np.float64))
    shuffled = [wealth_p(rng.permutation(losses), 0.2, 0.05) for _ in range(500)]
    low, high = np.quantile(shuffled, [0.01, 0.99])
    assert low < betting_p(losses, 0.2, delta=0.05) < high
    # In the order of their size, they pass what no shuffle passes.
    assert wealth_p(losses, 0.2, 0.05) < min(shuffled)


def test_betting_beats_the_mean_only_bounds_for_losses_of_small_variance() -> None:
    losses = np.full(200, 0.1)
    assert betting_p(losses, 0.15, delta=0.05) < hoeffding_bentkus_p(20.0, 200, 0.15) / 3


@pytest.mark.parametrize("loss", [math.nan, -0.1, 1.1, math.inf])
def test_losses_outside_the_unit_interval_are_refused_with_their_row(loss: float) -> None:
    with pytest.raises(DataError) as refusal:
        betting_p(np.array([0.2, loss]), 0.1, delta=0.05)
    assert refusal.value.row == 2


def test_the_smallest_level_of_the_binomial_is_clopper_and_pearson_s_bound() -> None:
    bound = smallest_level(lambda level: binomial_p(7, 100, level), 0.05)
    assert bound == pytest.approx(beta.ppf(0.95, 8, 93), abs=1e-9)
