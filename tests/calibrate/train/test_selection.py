from collections.abc import Callable

import numpy as np
import pytest

from calibrate.features.pooled_rows import PooledRows
from calibrate.train.quality import cascade_quality
from calibrate.train.rows import TrainingRows
from calibrate.train.selection import Candidate, PaddedRows, Scorer, sample_rows, select

Trainer = Callable[[TrainingRows], Scorer]
GOOD, BAD = Candidate((1,), ("mean",)), Candidate((2,), ("mean",))


def rows_of(count: int, *, seed: int = 0, lengths: np.ndarray | None = None) -> TrainingRows:
    """Rows whose first activation is the label and whose second is the row's number."""
    labels = (np.random.default_rng(seed).random(count) < 0.5).astype(float)
    values = np.stack([labels, np.arange(count)], axis=1).astype(np.float32)
    ones = np.ones(count, dtype=np.int64)
    pooled = PooledRows(values, ones if lengths is None else lengths, ones)
    return TrainingRows(pooled, labels, np.arange(count) // 2, np.full(count, 0.5))


def oracle(noise: float, seen: list[tuple[set[float], set[float]]]) -> Trainer:
    """A trainer whose p is the label, blurred; it notes which rows it was trained on and which it scored."""

    def train(rows: TrainingRows) -> Scorer:
        trained = set(rows.pooled.values[:, 1].tolist())

        def score(others: TrainingRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            seen.append((trained, set(others.pooled.values[:, 1].tolist())))
            p = np.abs(others.pooled.values[:, 0].astype(float) - noise)
            return p, np.zeros(len(others)), others.expert

        return score

    return train


def test_the_candidate_with_the_better_cascade_wins_and_all_scores_are_kept() -> None:
    trainers = {GOOD: oracle(0.1, []), BAD: oracle(0.4, [])}
    for order in ([GOOD, BAD], [BAD, GOOD]):
        best, records = select(order, rows_of(200), trainers.__getitem__, padded=None, seed=0)
        assert best == GOOD
        assert [record["layers"] for record in records] == [list(candidate.layers) for candidate in order]
        assert {record["layers"][0]: round(record["sets"]["folds"]["probe_auroc"]) for record in records} == {
            1: 1,
            2: 1,
        }
        assert records[order.index(GOOD)]["brier"] < records[order.index(BAD)]["brier"]


def test_no_row_is_scored_by_a_fit_that_has_seen_its_cluster() -> None:
    seen: list[tuple[set[float], set[float]]] = []
    lengths = np.arange(1, 301, dtype=np.int64)
    rows = rows_of(300, lengths=lengths)
    padded = PaddedRows(rows.take(np.arange(40)), np.arange(40))
    _, records = select([GOOD, BAD], rows, lambda _: oracle(0.2, seen), padded=padded, seed=0)
    for trained, scored in seen:
        assert not {row // 2 for row in trained} & {row // 2 for row in scored}
    assert set(records[0]["sets"]) == {"folds", "padded", "longer"}
    # The last fit of a candidate knows the shorter rows and is asked about the longest third.
    trained, scored = seen[-1]
    assert max(trained) < min(scored)
    assert len(scored) == 100


def test_rows_of_one_length_have_no_longer_set_and_one_candidate_is_not_judged() -> None:
    _, records = select([GOOD, BAD], rows_of(200), lambda _: oracle(0.2, []), padded=None, seed=0)
    assert set(records[0]["sets"]) == {"folds"}

    def refuse(candidate: Candidate) -> Trainer:
        raise AssertionError("there is nothing to choose")

    assert select([GOOD], rows_of(200), refuse, padded=None, seed=0) == (GOOD, [])


def test_the_sample_is_whole_clusters_and_bounded() -> None:
    clusters = np.repeat(np.arange(2000), 3)
    sample = sample_rows(clusters, seed=0)
    assert 2990 < sample.size <= 3000
    assert all(np.count_nonzero(clusters[sample] == number) == 3 for number in np.unique(clusters[sample])[:50])
    np.testing.assert_array_equal(sample_rows(clusters[:300], seed=0), np.arange(300))
    # A cluster that is too large for the sample keeps no other out.
    with_giant = np.concatenate([np.full(4000, 9999), clusters[:300]])
    np.testing.assert_array_equal(sample_rows(with_giant, seed=0), np.arange(4000, 4300))


def test_quality_is_the_mean_over_budgets_of_the_cascade() -> None:
    labels = np.array([0.0, 1.0] * 50)
    p, expert = np.full(100, 0.5), labels
    quality = cascade_quality(labels, p, np.arange(100.0), expert)
    # Half of a quarter of the Brier score is left for each share that is sent: .25 (1 - mean budget).
    assert quality["brier"] == pytest.approx(0.25 * (1 - np.mean([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])))
    assert quality["probe_auroc"] == 0.5
    # Rows of one label say nothing of a ranking.
    assert cascade_quality(np.ones(4), np.arange(4.0) / 4, np.arange(4.0), expert[:4])["auroc"] == 0.5
