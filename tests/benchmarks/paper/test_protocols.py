import numpy as np
import pytest

from benchmarks.paper.cube import FIGURES
from benchmarks.paper.protocols import OWN_METHODS, PAPER_ALPHAS, PAPER_METHODS, own_protocol, paper_protocol
from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.rows import ScoredRows


def scored_rows(n: int, seed: int) -> ScoredRows:
    """Rows with a weak probe, a strong expert, and a d that knows a part of v."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n).astype(np.float64)
    p = np.clip(0.5 + 0.15 * (2 * label - 1) + rng.normal(0, 0.25, n), 0, 1)
    expert = np.clip(0.5 + 0.4 * (2 * label - 1) + rng.normal(0, 0.2, n), 0, 1)
    value = (2 * label - 1) * (expert - p)
    return ScoredRows(p, value + rng.normal(0, 0.2, n), expert, label)


def figure(values: np.ndarray, methods: tuple[str, ...], method: str, name: str) -> np.ndarray:
    column: np.ndarray = values[methods.index(method), :, FIGURES.index(name)]
    return column


@pytest.fixture(scope="module")
def own() -> np.ndarray:
    calibration, test = scored_rows(500, 1), scored_rows(1000, 2)
    ridge = (np.random.default_rng(3).normal(size=500), np.random.default_rng(4).normal(size=1000))
    return own_protocol(calibration, test, ridge, delta=0.1, seed=0)


def test_own_protocol_spends_no_more_than_it_may(own: np.ndarray) -> None:
    assert own.shape == (len(OWN_METHODS), len(ALPHAS), len(FIGURES))
    for method in ("uncertainty", "uncertainty_rank", "ridge", "ctd"):
        assert (figure(own, OWN_METHODS, method, "rate") < np.array(ALPHAS) + 0.05).all()
    assert (figure(own, OWN_METHODS, "probe", "rate") == 0).all()


def test_ridge_is_routed_by_its_own_values(own: np.ndarray) -> None:
    auroc = {name: figure(own, OWN_METHODS, name, "auroc").mean() for name in ("ridge", "random", "ctd", "oracle")}
    # Here the ridge's values are noise.
    assert abs(auroc["ridge"] - auroc["random"]) < 0.02
    assert auroc["random"] + 0.03 < auroc["ctd"] < auroc["oracle"]


def test_paper_protocol_certifies_and_its_top_k_spends_all() -> None:
    rows = scored_rows(2000, 5)
    values = paper_protocol(rows, rows.d, delta=0.1, seed=0)
    assert values.shape == (len(PAPER_METHODS), len(PAPER_ALPHAS), len(FIGURES))
    alphas = np.array(PAPER_ALPHAS)
    rate = figure(values, PAPER_METHODS, "ridge", "rate")
    assert (rate < alphas + 0.06).all()
    assert rate.max() > 0.3
    assert figure(values, PAPER_METHODS, "ridge_top_64", "rate") == pytest.approx(alphas, abs=0.02)
    # With the same d, what differs is the protocol alone.
    assert figure(values, PAPER_METHODS, "ctd", "auroc") == pytest.approx(
        figure(values, PAPER_METHODS, "ridge", "auroc"), abs=1e-12
    )


def test_paper_protocol_asks_nobody_where_nothing_can_be_certified() -> None:
    rows = scored_rows(60, 6)
    values = paper_protocol(rows, rows.d, delta=0.1, seed=0)
    assert figure(values, PAPER_METHODS, "ctd", "rate")[0] == 0.0
