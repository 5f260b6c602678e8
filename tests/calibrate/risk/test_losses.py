from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn import metrics

from calibrate.risk.losses import LOG_LOSS_CAP, Metric, Risk, losses, risk_value
from calibrate.risk.rows import Rows, Setting
from ctd_guardrail.errors import ConfigError, DataError


def _rows(seed: int, n: int = 200) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(
        d=rng.normal(size=n),
        probe=rng.integers(0, 21, n) / 20,
        expert=rng.integers(0, 21, n) / 20,
        label=np.append([0.0, 1.0], rng.integers(0, 2, n - 2).astype(np.float64)),
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(-2, 2), tau=st.floats(0.1, 0.9))
def test_risks_are_those_of_scikit_learn(seed: int, threshold: float, tau: float) -> None:
    rows, setting = _rows(seed), Setting(threshold, tau)
    score = np.where(rows.d > threshold, rows.expert, rows.probe)
    verdict = score >= tau
    tn, fp, fn, tp = metrics.confusion_matrix(rows.label, verdict).ravel()
    expected = {
        Metric.ERROR: 1 - metrics.accuracy_score(rows.label, verdict),
        Metric.FNR: fn / (fn + tp),
        Metric.FPR: fp / (fp + tn),
        Metric.ABSTAINED: 0.0,
        Metric.BRIER: metrics.brier_score_loss(rows.label, score),
        Metric.AUROC_ERROR: 1 - metrics.roc_auc_score(rows.label, score),
    }
    for metric, value in expected.items():
        assert risk_value(metric, rows, setting) == pytest.approx(value)


def test_log_loss_is_cut_and_stays_in_range() -> None:
    rows = Rows(np.zeros(4), np.array([0.0, 1.0, 0.5, 1e-3]), np.zeros(4), np.array([1.0, 1.0, 0.0, 1.0]))
    cut = losses(Metric.LOG_LOSS, rows, Setting(math.inf))
    assert cut.tolist() == pytest.approx([LOG_LOSS_CAP, 0.0, math.log(2), -math.log(1e-3)])
    assert Risk(Metric.LOG_LOSS, 6.9).p_value(rows, Setting(math.inf), delta=0.05) <= 1.0


def test_the_abstain_band_takes_verdicts_away_and_nothing_else() -> None:
    rows = Rows(np.zeros(4), np.array([0.45, 0.55, 0.1, 0.9]), np.zeros(4), np.array([1.0, 0.0, 1.0, 0.0]))
    banded = Setting(math.inf, tau=0.5, band=0.1)
    assert losses(Metric.ERROR, rows, banded).tolist() == [1.0, 1.0]
    assert risk_value(Metric.ABSTAINED, rows, banded) == 0.5
    assert losses(Metric.FNR, rows, banded).tolist() == [0.0, 1.0]
    assert losses(Metric.FPR, rows, banded).tolist() == [0.0, 1.0]
    assert risk_value(Metric.BRIER, rows, banded) == risk_value(Metric.BRIER, rows, Setting(math.inf))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(-2, 2), tau=st.floats(0.1, 0.9))
def test_risks_of_the_probe_are_those_of_scikit_learn_on_the_rows_that_it_keeps(
    seed: int, threshold: float, tau: float
) -> None:
    rows, setting = _rows(seed), Setting(threshold, tau)
    kept = np.flatnonzero(rows.d <= threshold)
    label, verdict = rows.label[kept], rows.probe[kept] >= tau
    tn, _, fn, _ = metrics.confusion_matrix(label, verdict, labels=[0.0, 1.0]).ravel() if kept.size else (0, 0, 0, 0)
    error, omission = (
        risk_value(metric, rows, setting) for metric in (Metric.PROBE_ERROR, Metric.PROBE_FALSE_OMISSION)
    )
    assert error == pytest.approx(np.mean(label != verdict) if kept.size else math.nan, nan_ok=True)
    assert omission == pytest.approx(fn / (fn + tn) if fn + tn else math.nan, nan_ok=True)


def test_in_the_abstain_band_the_probe_gives_no_verdict() -> None:
    rows = Rows(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.45, 0.1, 0.9, 0.1]), np.zeros(4), np.ones(4))
    banded = Setting(0.5, tau=0.5, band=0.1)
    assert losses(Metric.PROBE_ERROR, rows, banded).tolist() == [1.0, 0.0]
    assert losses(Metric.PROBE_FALSE_OMISSION, rows, banded).tolist() == [1.0]


def test_rows_that_the_expert_refused_count_in_the_risks_of_the_probe_alone() -> None:
    rows, setting = _rows(0), Setting(0.0, tau=0.45)
    # The expert refuses unsafe inputs that the probe allows, as the filter of an endpoint may.
    refused = (rows.label == 1.0) & (rows.probe < 0.45)
    some = Rows(rows.d, rows.probe, np.where(refused, np.nan, rows.expert), rows.label)
    answered = rows.take(np.flatnonzero(~refused))
    for metric in Metric:
        same_as = rows if metric in {Metric.PROBE_ERROR, Metric.PROBE_FALSE_OMISSION} else answered
        assert risk_value(metric, some, setting) == risk_value(metric, same_as, setting)
        bound = Risk(metric, 0.3)
        expected = bound.p_value(same_as, setting, delta=0.1)
        assert bound.p_value(some, setting, delta=0.1) == pytest.approx(expected)


def test_a_score_of_tau_blocks_and_a_d_of_lambda_is_not_delegated() -> None:
    rows = Rows(np.array([0.3, 0.4]), np.array([0.5, 0.5]), np.zeros(2), np.array([0.0, 1.0]))
    assert losses(Metric.ERROR, rows, Setting(0.4, 0.5)).tolist() == [1.0, 0.0]
    assert losses(Metric.ERROR, rows, Setting(0.3, 0.5)).tolist() == [1.0, 1.0]


def test_the_missed_harm_rate_is_tested_on_unsafe_rows_alone() -> None:
    rows = _rows(0, 1000)
    setting = Setting(0.0)
    missed = losses(Metric.FNR, rows, setting)
    assert missed.size == rows.label.sum()
    bound = Risk(Metric.FNR, 0.5).upper_bound(rows, setting, delta=0.05)
    assert bound == pytest.approx(beta.ppf(0.95, missed.sum() + 1, missed.size - missed.sum()), abs=1e-9)


def test_without_a_row_that_counts_nothing_is_certified() -> None:
    rows = Rows(np.zeros(50), np.full(50, 0.2), np.zeros(50), np.zeros(50))
    for metric in (Metric.FNR, Metric.AUROC_ERROR):
        assert Risk(metric, 0.99).p_value(rows, Setting(0.0), delta=0.05) == 1.0
    assert math.isnan(risk_value(Metric.FNR, rows, Setting(0.0)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), metric=st.sampled_from(list(Metric)))
def test_the_upper_bound_is_where_the_p_value_passes(seed: int, metric: Metric) -> None:
    rows, setting, delta = _rows(seed), Setting(0.3, 0.6, 0.05), 0.1
    bound = Risk(metric, 0.5).upper_bound(rows, setting, delta=delta)
    assert bound >= risk_value(metric, rows, setting)
    scale = Risk(metric, 0.5).scale
    if bound < scale:
        assert Risk(metric, bound).p_value(rows, setting, delta=delta) <= delta
    if bound < 0.999 * scale:
        assert Risk(metric, bound * 0.999).p_value(rows, setting, delta=delta) > delta


@pytest.mark.parametrize(
    ("metric", "bound"), [(Metric.FNR, 0.0), (Metric.FNR, 1.0), (Metric.LOG_LOSS, 7.0), (Metric.BRIER, math.nan)]
)
def test_a_bound_that_says_nothing_or_cannot_hold_is_refused(metric: Metric, bound: float) -> None:
    with pytest.raises(ConfigError, match=metric.value):
        Risk(metric, bound)


@pytest.mark.parametrize(
    ("column", "value"),
    [("d", math.nan), ("d", math.inf), ("probe", -0.1), ("expert", 1.5), ("expert", math.inf), ("label", 0.5)],
)
def test_rows_that_are_no_rows_are_refused_with_their_number(column: str, value: float) -> None:
    columns = {name: np.array([0.0, 1.0, 0.0]) for name in ("d", "probe", "expert", "label")}
    columns[column][1] = value
    with pytest.raises(DataError) as refusal:
        Rows(**columns)
    assert refusal.value.row == 2


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="label"):
        Rows(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(2))
