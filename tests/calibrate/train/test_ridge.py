import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from calibrate.train.ridge import PENALTIES, fit_ridge


def problem(rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width))
    target = features @ rng.normal(size=width) / width + 0.5 * rng.normal(size=rows) + 2.0
    clusters = rng.integers(0, rows // 2, size=rows)
    return features, target, clusters


def sklearn_ridge(features: np.ndarray, target: np.ndarray, penalty: float, strength_rows: int) -> SklearnRidge:
    return SklearnRidge(alpha=penalty * strength_rows, solver="cholesky").fit(features, target)


@pytest.mark.parametrize(("rows", "width"), [(120, 10), (40, 90)], ids=["tall", "wide"])
def test_left_out_predictions_are_those_of_refits_without_each_cluster(rows: int, width: int) -> None:
    features, target, clusters = problem(rows, width)
    fitted = fit_ridge(features, target, clusters)
    refits = np.empty(rows)
    for cluster in np.unique(clusters):
        out = clusters == cluster
        # The penalty is stated per row of the full fit, and stays what it is when rows are left out.
        refits[out] = sklearn_ridge(features[~out], target[~out], fitted.penalty, rows).predict(features[out])
    assert np.allclose(fitted.left_out, refits, atol=1e-8)
    assert fitted.errors[PENALTIES.index(fitted.penalty)] == pytest.approx(np.mean((target - refits) ** 2))


@pytest.mark.parametrize(("rows", "width"), [(120, 10), (40, 90)], ids=["tall", "wide"])
def test_weights_are_those_of_the_plain_solution(rows: int, width: int) -> None:
    features, target, clusters = problem(rows, width)
    fitted = fit_ridge(features, target, clusters)
    plain = sklearn_ridge(features, target, fitted.penalty, rows)
    assert np.allclose(fitted.weight, plain.coef_, atol=1e-8)
    assert fitted.bias == pytest.approx(plain.intercept_)


def test_copies_of_rows_do_not_talk_the_penalty_down() -> None:
    features, target, _ = problem(60, 50, seed=3)
    features, target = np.repeat(features, 4, axis=0), np.repeat(target, 4)
    honest = fit_ridge(features, target, np.repeat(np.arange(60), 4))
    fooled = fit_ridge(features, target, np.arange(240))
    assert fooled.penalty < honest.penalty
    assert min(fooled.errors) < min(honest.errors)


def test_constant_features_predict_the_mean() -> None:
    fitted = fit_ridge(np.zeros((10, 3)), np.arange(10.0), np.arange(10))
    assert fitted.bias == pytest.approx(4.5)
    assert not fitted.weight.any()
