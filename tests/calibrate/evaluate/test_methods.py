from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from calibrate.evaluate import ScoredRows
from calibrate.evaluate.methods import CHOSEN, TOP_K, Methods
from calibrate.evaluate.signals import uncertainty, uncertainty_rank
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.selection import best_threshold
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.probes.merge import Merge

World = Callable[..., ScoredRows]


def test_median_rank_uncertainty_by_hand() -> None:
    reference = np.array([0.1, 0.2, 0.6, 0.7])
    signal = uncertainty_rank(np.array([0.05, 0.1, 0.4, 0.9]), reference)
    assert signal.tolist() == [-0.5, -0.375, 0.0, -0.5]
    # |p - 1/2| prefers .6; the ranks prefer the middle of the reference.
    assert uncertainty(np.array([0.4, 0.6])).tolist() == pytest.approx([-0.1, -0.1])


def test_median_rank_uncertainty_finds_the_middle_of_scores_on_one_side() -> None:
    p = np.linspace(0.01, 0.3, 30)
    assert np.argmax(uncertainty(p)) == 29
    assert np.argmax(uncertainty_rank(p, p)) in {14, 15}


def test_the_top_of_each_batch(world: World, calibration: CalibrationScores) -> None:
    rows = world(300)
    methods = Methods(rows, calibration, delta=0.1, seed=3)
    order = np.random.default_rng(3).permutation(300)
    for method, (name, size) in TOP_K.items():
        signal = {"uncertainty": -np.abs(rows.p - 0.5), "ctd": rows.d, "oracle": rows.value}[name]
        wanted = np.zeros(300, bool)
        for start in range(0, 300, size):
            batch = sorted(order[start : start + size], key=lambda row: -signal[row])
            wanted[batch[: largest_count(len(batch), 0.3)]] = True
        assert np.array_equal(methods.delegate(method, 0.3).rows, wanted), method


def test_the_best_certified_threshold_of_each_criterion(world: World, calibration: CalibrationScores) -> None:
    rows = replace(world(300), merge=Merge(kind="average"))
    methods = Methods(rows, calibration, delta=0.1, tau=0.4)
    certificate = certify(calibration.d, 0.3, 0.1)
    assert calibration.expert is not None
    for method, criterion in CHOSEN.items():
        choice = best_threshold(
            certificate,
            criterion,
            d=calibration.d,
            probe=calibration.p,
            expert=(calibration.p + calibration.expert) / 2,
            label=calibration.label,
            tau=0.4,
        )
        delegation = methods.delegate(method, 0.3)
        assert delegation.threshold == choice.threshold >= certificate.threshold
        assert np.array_equal(delegation.rows, rows.d > choice.threshold)


def test_without_labelled_calibration_rows_there_is_no_choice(world: World, calibration: CalibrationScores) -> None:
    bare = CalibrationScores(calibration.d, calibration.p)
    assert not set(CHOSEN) & set(Methods(world(), bare, delta=0.1).names)
    assert set(CHOSEN) < set(Methods(world(), calibration, delta=0.1).names)


def test_traffic_certifies_d_and_nothing_else(world: World, calibration: CalibrationScores) -> None:
    traffic = np.linspace(0, 1, 999)
    ours, theirs = (Methods(world(), calibration, delta=0.1, traffic=scores) for scores in (traffic, None))
    assert ours.delegate("ctd", 0.2).threshold == certify(traffic, 0.2, 0.1).threshold
    assert ours.delegate("uncertainty", 0.2).threshold == theirs.delegate("uncertainty", 0.2).threshold


@pytest.mark.parametrize("alpha", [0.05, 0.31, 0.95])
def test_no_method_that_counts_goes_over_its_share(world: World, calibration: CalibrationScores, alpha: float) -> None:
    methods = Methods(world(), calibration, delta=0.1)
    for method in ("random", "oracle", *TOP_K):
        assert methods.delegate(method, alpha).rows.mean() <= alpha


def test_an_unknown_method_is_an_error(world: World, calibration: CalibrationScores) -> None:
    with pytest.raises(KeyError):
        Methods(world(), calibration, delta=0.1).delegate("coin", 0.1)
