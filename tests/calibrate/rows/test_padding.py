"""Rows inside benign context: from the same fold, from other clusters, and never too much of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.rows.data import Dataset, read_dataset
from calibrate.rows.padding import pad_rows

Make = Callable[..., list[dict[str, Any]]]


def _rows(make_rows: Make, write_rows: Callable[..., Path]) -> Dataset:
    return read_dataset([write_rows(make_rows(200))])


def test_context_is_safe_of_the_same_fold_and_of_other_clusters(make_rows: Make, write_rows: Any) -> None:
    dataset = _rows(make_rows, write_rows)
    rows = np.arange(10, 200)
    folds, clusters = rows % 5, rows // 10
    padded, inside = pad_rows(dataset, rows, folds, clusters, total=10**7, max_tokens=10**5, seed=0)
    assert len(padded) == inside.size == rows.size
    row_of_text = {conversation.plain_text(): row for row, conversation in enumerate(dataset.conversations)}
    for conversation, place in zip(padded.conversations, inside, strict=True):
        (*context,) = (row_of_text[text] for text in conversation.plain_text().split("\n\n"))
        assert context.pop(3) == rows[place]
        assert len(set(context)) == 6
        assert all(dataset.labels[row] == 0 for row in context)
        assert all(row % 5 == folds[place] for row in context)
        assert all(row // 10 != clusters[place] for row in context)
    np.testing.assert_array_equal(padded.labels, dataset.labels[rows[inside]])
    np.testing.assert_array_equal(padded.line_of_row, dataset.line_of_row[rows[inside]])


def test_the_sample_costs_a_small_share_and_fits_the_base_model(make_rows: Make, write_rows: Any) -> None:
    dataset = _rows(make_rows, write_rows)
    rows, ones = np.arange(200), np.zeros(200, dtype=np.int64)
    padded, inside = pad_rows(dataset, rows, ones, rows, total=100_000, max_tokens=10**5, seed=0)
    assert 0 < sum(len(conversation.plain_text()) for conversation in padded.conversations) <= 4000
    again, _ = pad_rows(dataset, rows, ones, rows, total=100_000, max_tokens=10**5, seed=0)
    assert again.conversations == padded.conversations
    nothing, inside = pad_rows(dataset, rows, ones, rows, total=100_000, max_tokens=50, seed=0)
    assert len(nothing) == inside.size == 0
    nothing, _ = pad_rows(dataset, rows, ones, ones, total=100_000, max_tokens=10**5, seed=0)
    assert len(nothing) == 0
