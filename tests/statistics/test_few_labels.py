"""Risks from rows of which a coin labelled a share: how often they are false, and how tight they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, ndtr
from scipy.stats import binom

from calibrate.risk.losses import Metric, Risk, losses
from calibrate.risk.pvalues import binomial_p, smallest_level
from calibrate.risk.rows import Rows, Setting

DELTA = 0.1
NEVER = Setting(np.inf)


def draw(seed: int, n: int, share: float, *, expert: float | None, probe: float = 1.0) -> Rows:
    """Draw rows of half unsafe inputs. Probe and expert are logistic scores of these separations.

    An expert with a negative separation is wrong more often than right, and sure of it. None: an expert that is sure of
    each verdict of the probe.
    """
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.5).astype(np.float64)
    p, e = (expit(2 * abs(s) * (s * (2 * label - 1) + rng.normal(size=n))) for s in (probe, expert or 0.0))
    e = (p >= NEVER.tau).astype(np.float64) if expert is None else e
    has_label = rng.random(n) < share
    return Rows(rng.random(n), p, e, np.where(has_label, label, np.nan), label_share=share)


# Symmetric classes: the probe at separation 1 errs on ndtr(-1) of all, of the unsafe, of the safe and of the allowed.
TRUTH = float(ndtr(-1.0))
METRICS = [Metric.ERROR, Metric.FNR, Metric.FPR, Metric.PROBE_ERROR, Metric.PROBE_FALSE_OMISSION]


@pytest.mark.parametrize("expert", [2.0, 0.0, -2.0, None])
@pytest.mark.parametrize("metric", METRICS)
def test_a_false_bound_passes_in_at_most_delta_of_the_draws_whatever_the_expert_is(
    metric: Metric, expert: float | None
) -> None:
    draws = 2000
    passed = sum(
        Risk(metric, TRUTH).p_value(draw(seed, 500, 0.2, expert=expert), NEVER, delta=DELTA) <= DELTA
        for seed in range(draws)
    )
    assert passed <= binom.ppf(1 - 1e-4, draws, DELTA)


@pytest.mark.parametrize("metric", METRICS)
def test_with_a_good_expert_the_bound_is_tighter_than_that_of_the_labelled_rows_alone(metric: Metric) -> None:
    with_expert, labels_alone = [], []
    for seed in range(20):
        rows = draw(seed, 4000, 0.1, expert=2.5)
        with_expert.append(Risk(metric, 0.5).upper_bound(rows, NEVER, delta=DELTA))
        counted = losses(metric, rows, NEVER)
        total, n = int(counted.sum()), counted.size
        labels_alone.append(smallest_level(lambda level, k=total, n=n: binomial_p(k, n, level), DELTA))
    gain = (np.mean(labels_alone) - TRUTH) / (np.mean(with_expert) - TRUTH)
    assert gain > 1.3


def test_with_all_labels_but_one_in_a_thousand_it_agrees_with_the_exact_bound() -> None:
    rows = draw(0, 4000, 0.999, expert=2.0)
    everything = Rows(rows.d, rows.probe, rows.expert, np.nan_to_num(rows.label))
    few, exact = (Risk(Metric.ERROR, 0.5).upper_bound(each, NEVER, delta=DELTA) for each in (rows, everything))
    assert few == pytest.approx(exact, abs=0.01)
