import numpy as np
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.paper.cube import FIGURES
from benchmarks.paper.delegation import fit_binary_value, fit_ridge_value
from benchmarks.paper.protocols import compare_targets
from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.rows import ScoredRows


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means, labels, p and expert scores: the probe knows activation 0, and the expert errs if activation 1 is low."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n, 4)).astype(np.float32)
    labels = (rng.random(n) < expit(1.5 * means[:, 0])).astype(np.float64)
    skill = np.clip(0.5 + 0.4 * means[:, 1], 0.0, 1.0)
    return means, labels, expit(1.5 * means[:, 0]).astype(np.float64), np.where(labels == 1, skill, 1 - skill)


def test_both_targets_rank_rows_by_the_use_of_the_expert() -> None:
    means, labels, p, expert = world(3000, 0)
    fresh, fresh_labels, fresh_p, fresh_expert = world(3000, 1)
    value = (2 * fresh_labels - 1) * (fresh_expert - fresh_p)
    ridge = fit_ridge_value(means, labels, p, expert).predict(fresh)
    assert spearmanr(ridge, value).statistic > 0.3
    binary = fit_binary_value(means, labels, p, expert, clusters=np.arange(3000), fresh=fresh, seed=0)
    assert binary is not None
    corrected = ((fresh_p >= 0.5) != fresh_labels) & ((fresh_expert >= 0.5) == fresh_labels)
    assert roc_auc_score(corrected, binary) > 0.6


def test_the_binary_target_needs_rows_that_the_expert_corrects() -> None:
    means, labels, p, _ = world(40, 0)
    assert fit_binary_value(means, labels, p, p, clusters=np.arange(40), fresh=means, seed=0) is None


def test_targets_are_compared_on_equally_many_rows() -> None:
    _, labels, p, expert = world(1000, 2)
    rows = ScoredRows(p, np.zeros(1000), expert, labels)
    figures = compare_targets(rows, (rows.value, -rows.value))
    assert figures.shape == (2, len(ALPHAS), len(FIGURES))
    rates = figures[:, :, FIGURES.index("rate")]
    np.testing.assert_array_equal(rates[0], rates[1])
    # The best ranking against the worst.
    assert (figures[0, :, FIGURES.index("brier")] < figures[1, :, FIGURES.index("brier")]).all()
