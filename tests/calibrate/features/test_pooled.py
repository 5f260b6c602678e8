import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calibrate.features.pooled_rows import PooledRows


def rows(counts: list[int]) -> PooledRows:
    windows = np.array(counts, dtype=np.int64)
    total = int(windows.sum())
    return PooledRows(np.arange(2.0 * total, dtype=np.float32).reshape(total, 2), np.arange(total), windows)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_taking_rows_takes_all_their_windows_in_order(counts: list[int], data: st.DataObject) -> None:
    pooled = rows(counts)
    wanted = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=10))
    taken = pooled.take(np.array(wanted, dtype=np.int64))
    parts = np.split(pooled.values, np.cumsum(counts)[:-1])
    assert taken.windows.tolist() == [counts[row] for row in wanted]
    assert taken.values.tolist() == [vector for row in wanted for vector in parts[row].tolist()]
    assert taken.lengths.size == taken.values.shape[0]


def test_scores_of_a_row_are_the_maxima_over_its_windows() -> None:
    scores = np.array([[0.1, 0.9], [0.4, -0.2], [0.3, 0.0]])
    assert rows([2, 1]).over_windows(scores).tolist() == [[0.4, 0.9], [0.3, 0.0]]


def test_parts_follow_each_other() -> None:
    joined = PooledRows.concatenate([rows([2, 1]), rows([1])])
    assert len(joined) == 3
    assert joined.row_of_window.tolist() == [0, 0, 1, 2]
    assert joined.values.shape == (4, 2)
