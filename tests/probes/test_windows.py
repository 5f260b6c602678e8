import numpy as np

from ctd_guardrail.probes.windows import over_windows


def test_p_and_d_are_maxima_each_for_itself() -> None:
    assert over_windows(np.array([[0.1, 0.5], [0.9, -0.5]])).tolist() == [0.9, 0.5]
    assert over_windows(np.array([[0.1, -0.5]])).tolist() == [0.1, -0.5]


def test_a_window_without_a_score_is_not_passed_over() -> None:
    assert np.isnan(over_windows(np.array([[0.1, 0.5], [np.nan, 0.1]]))[0])
