import numpy as np
import pytest

from benchmarks.paper.cube import FIGURES, Cube, standard_error

ALPHAS = (0.1, 0.2, 0.5)


def cube(**auroc: list[float]) -> Cube:
    """One seed, the same number for every figure."""
    values = np.array([[[value] * len(FIGURES) for value in column] for column in auroc.values()])
    return Cube.stack(list(auroc), ALPHAS, [values, values + 0.01])


def test_the_oracle_wins_all_of_its_own_area_and_the_probe_nothing() -> None:
    found = cube(probe=[0.7] * 3, ctd=[0.75, 0.8, 0.8], oracle=[0.8, 0.9, 0.9])
    assert found.faic("oracle").tolist() == [1.0, 1.0]
    assert found.faic("probe").tolist() == [0.0, 0.0]
    # Half of the oracle's gain at every budget is half of its area.
    assert found.faic("ctd") == pytest.approx([0.5, 0.5])


def test_areas_begin_at_the_probe_without_a_budget() -> None:
    found = cube(probe=[0.0] * 3, ctd=[1.0, 0.0, 0.0], oracle=[1.0, 1.0, 1.0])
    assert found.faic("ctd")[0] == pytest.approx((0.05 + 0.05) / (0.05 + 0.1 + 0.3))


def test_less_is_better_for_brier_score_and_missed_harm() -> None:
    found = cube(probe=[0.7] * 3, ctd=[0.6] * 3)
    for figure, sign in (("auroc", -1), ("accuracy", -1), ("brier", 1), ("missed_harm", 1)):
        assert found.gain("ctd", "probe", figure) == pytest.approx(np.full((2, 3), sign * 0.1))


def test_a_cube_survives_its_file_format() -> None:
    found = cube(probe=[0.7] * 3, ctd=[0.1, 0.2, 0.3])
    again = Cube.from_dict(found.to_dict())
    assert (again.methods, again.alphas) == (found.methods, found.alphas)
    assert np.allclose(again.values, found.values, atol=1e-6)


def test_standard_errors_are_of_the_mean_over_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(400, 2))
    assert standard_error(values) == pytest.approx(np.full(2, 1 / 20), rel=0.15)
    assert standard_error(values[:1]).tolist() == [0.0, 0.0]
