"""The paper's comparisons: uncertainty by rank, and the top of each batch."""

import numpy as np
import pytest

from benchmarks.paper.methods import RANK, TOP_K, PaperMethods, uncertainty_rank
from calibrate.evaluate.methods import Methods, uncertainty
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail.policy.budget import certify, sort_scores
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.store import CalibrationScores


def scored_rows(n: int, seed: int) -> ScoredRows:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n).astype(np.float64)
    p = np.clip(0.5 + 0.15 * (2 * label - 1) + rng.normal(0, 0.25, n), 0, 1)
    expert = np.clip(0.5 + 0.4 * (2 * label - 1) + rng.normal(0, 0.2, n), 0, 1)
    return ScoredRows(p, (2 * label - 1) * (expert - p) + rng.normal(0, 0.2, n), expert, label)


@pytest.fixture(scope="module")
def rows() -> ScoredRows:
    return scored_rows(300, 1)


@pytest.fixture(scope="module")
def calibration() -> CalibrationScores:
    held = scored_rows(400, 2)
    return CalibrationScores.from_rows(d=held.d, p=held.p, expert=held.expert, label=held.label)


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


def test_uncertainty_by_rank_is_certified_on_the_calibration_rows(
    rows: ScoredRows, calibration: CalibrationScores
) -> None:
    delegation = PaperMethods(rows, calibration, delta=0.1).delegate(RANK, 0.3)
    certificate = certify(sort_scores(uncertainty_rank(calibration.p, calibration.p)), 0.3, 0.1)
    assert (delegation.threshold, delegation.k) == (certificate.threshold, certificate.k)
    assert np.array_equal(delegation.rows, uncertainty_rank(rows.p, calibration.p) > certificate.threshold)


def test_the_top_of_each_batch(rows: ScoredRows, calibration: CalibrationScores) -> None:
    methods = PaperMethods(rows, calibration, delta=0.1, seed=3)
    order = np.random.default_rng(3).permutation(300)
    for method, (name, size) in TOP_K.items():
        signal = {"uncertainty": -np.abs(rows.p - 0.5), "ctd": rows.d, "oracle": rows.value}[name]
        wanted = np.zeros(300, bool)
        for start in range(0, 300, size):
            batch = sorted(order[start : start + size], key=lambda row, s=signal: -s[row])  # type: ignore[misc]
            wanted[batch[: largest_count(len(batch), 0.3)]] = True
        assert np.array_equal(methods.delegate(method, 0.3).rows, wanted), method
        assert methods.delegate(method, 0.05).rows.mean() <= 0.05


def test_the_other_methods_are_those_of_the_package(rows: ScoredRows, calibration: CalibrationScores) -> None:
    theirs, ours = (kind(rows, calibration, delta=0.1, seed=4) for kind in (PaperMethods, Methods))
    assert set(theirs.names) == {*ours.names, RANK, *TOP_K}
    for method in ours.names:
        assert np.array_equal(theirs.delegate(method, 0.2).rows, ours.delegate(method, 0.2).rows)
