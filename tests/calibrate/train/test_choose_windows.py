import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.windows import choose_windows


def long_rows(seed: int = 0) -> tuple[PooledRows, np.ndarray, np.ndarray]:
    """Rows of three windows; in an unsafe row one of them, known to the caller, is what makes it unsafe."""
    rng = np.random.default_rng(seed)
    rows, width = 500, 8
    values = rng.normal(scale=0.5, size=(rows, 3, width)).astype(np.float32)
    labels = (rng.random(rows) < 0.5).astype(float)
    guilty = rng.integers(0, 3, size=rows)
    unsafe = np.flatnonzero(labels)
    values[unsafe, guilty[unsafe], 0] += 3.0
    pooled = PooledRows(
        values.reshape(-1, width), np.full(3 * rows, 10, dtype=np.int64), np.full(rows, 3, dtype=np.int64)
    )
    return pooled, labels, guilty


def test_rows_of_one_window_stand_for_themselves() -> None:
    pooled = PooledRows(np.ones((4, 2), np.float32), np.ones(4, np.int64), np.ones(4, np.int64))
    assert choose_windows(pooled, np.array([0.0, 1, 0, 1]), np.arange(4), seed=0).tolist() == [0, 1, 2, 3]


def test_the_guilty_window_is_found() -> None:
    pooled, labels, guilty = long_rows()
    chosen = choose_windows(pooled, labels, np.arange(labels.size), seed=0)
    np.testing.assert_array_equal(pooled.row_of_window[chosen], np.arange(labels.size))
    unsafe = labels == 1
    assert (chosen[unsafe] % 3 == guilty[unsafe]).mean() > 0.95


def test_a_fit_to_the_chosen_windows_beats_one_that_blames_all_windows_alike() -> None:
    pooled, labels, _ = long_rows()
    fresh, fresh_labels, _ = long_rows(seed=1)
    chosen = choose_windows(pooled, labels, np.arange(labels.size), seed=0)
    fits = {
        "chosen": LogisticRegression().fit(pooled.values[chosen], labels),
        "alike": LogisticRegression().fit(pooled.values, labels[pooled.row_of_window]),
    }
    loss = {}
    for name, fit in fits.items():
        p = expit(fit.decision_function(fresh.values)).reshape(-1, 3).max(axis=1)
        assert roc_auc_score(fresh_labels, p) > 0.9
        loss[name] = np.square(fresh_labels - p).mean()
    assert loss["chosen"] < 0.5 * loss["alike"]
