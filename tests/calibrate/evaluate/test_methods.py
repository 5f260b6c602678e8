from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from calibrate.evaluate.methods import CHOSEN, METHODS, Methods
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.selection import best_threshold
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.probes.merge import Merge

World = Callable[..., ScoredRows]


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
    assert Methods(world(), bare, delta=0.1).names == METHODS
    assert set(CHOSEN) < set(Methods(world(), calibration, delta=0.1).names)


def test_turns_certify_d_and_nothing_else(world: World, calibration: CalibrationScores) -> None:
    turns = TurnScores(np.linspace(0, 1, 999))
    ours, theirs = (Methods(world(), calibration, delta=0.1, turns=scores) for scores in (turns, None))
    assert ours.delegate("ctd", 0.2).threshold == certify(turns, 0.2, 0.1).threshold
    assert ours.delegate("uncertainty", 0.2).threshold == theirs.delegate("uncertainty", 0.2).threshold


@pytest.mark.parametrize("alpha", [0.05, 0.31, 0.95])
def test_no_method_that_counts_goes_over_its_share(world: World, calibration: CalibrationScores, alpha: float) -> None:
    methods = Methods(world(), calibration, delta=0.1)
    for method in ("random", "oracle"):
        assert methods.delegate(method, alpha).rows.mean() <= alpha


def test_an_unknown_method_is_an_error(world: World, calibration: CalibrationScores) -> None:
    with pytest.raises(KeyError):
        Methods(world(), calibration, delta=0.1).delegate("coin", 0.1)
