"""Rows that depend on each other never part, and every row has one use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.config.file import SplitConfig
from calibrate.rows.data import Dataset
from calibrate.rows.splits import PARTS, Split, begin_with, find_clusters, row_digests, split_rows
from ctd_guardrail.errors import DataError
from ctd_guardrail.text.conversation import Context, Conversation, Message


def _dataset(
    conversations: list[Conversation],
    *,
    clusters: list[str | None] | None = None,
    dialogues: list[str | None] | None = None,
    parts: list[str | None] | None = None,
) -> Dataset:
    n = len(conversations)
    return Dataset(
        conversations=conversations,
        wholes=conversations,
        context=Context.CONVERSATION,
        is_readable=np.ones(n, dtype=np.bool_),
        labels=np.arange(n, dtype=np.float64) % 2,
        expert=None,
        groups=None,
        parts=parts,
        clusters=clusters or [None] * n,
        dialogues=dialogues or [None] * n,
        files=(Path("rows.jsonl"),),
        file_of_row=np.zeros(n, dtype=np.int64),
        line_of_row=np.arange(1, n + 1),
        records=[],
    )


def _turns(*texts: str) -> Conversation:
    return Conversation(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)))


def _texts(count: int) -> list[Conversation]:
    return [Conversation.from_text(f"text {i}") for i in range(count)]


# So few words that copies, prefixes and chains of both are common.
_words = st.sampled_from(["a", "A", "b ", " b", "c"])
_conversations = st.lists(st.lists(_words, min_size=1, max_size=3).map(lambda texts: _turns(*texts)), min_size=9)
_names = st.one_of(st.none(), st.sampled_from(["x", "y", "z"]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), extra=st.integers(0, 60), seed=st.integers(0, 9))
def test_no_row_and_no_cluster_has_two_uses(data: st.DataObject, extra: int, seed: int) -> None:
    conversations = [*data.draw(_conversations), *_texts(30 + extra)]
    n = len(conversations)
    names = st.lists(_names, min_size=9, max_size=9).map(lambda drawn: [*drawn, *[None] * (n - 9)])
    dataset = _dataset(conversations, clusters=data.draw(names), dialogues=data.draw(names))
    split = split_rows(dataset, SplitConfig(train=0.4, calibration=0.3, test=0.3, seed=seed))
    uses = [set(getattr(split, part).tolist()) for part in PARTS]
    assert sum(map(len, uses)) == len(set.union(*uses)) == n - split.left_out - split.test_left_out
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not {split.clusters[row] for row in uses[one]} & {split.clusters[row] for row in uses[other]}
    for part in (split.calibration, split.test):
        assert len({split.clusters[row] for row in part}) == part.size
    for i in range(n):
        for j in range(i):
            shorter, longer = sorted((conversations[i].messages, conversations[j].messages), key=len)
            folded = [[" ".join(m.content.casefold().split()) for m in turns] for turns in (shorter, longer)]
            related = folded[1][: len(folded[0])] == folded[0]
            related |= dataset.clusters[i] is not None and dataset.clusters[i] == dataset.clusters[j]
            related |= dataset.dialogues[i] is not None and dataset.dialogues[i] == dataset.dialogues[j]
            assert not related or split.clusters[i] == split.clusters[j]


def test_clusters_join_what_depends_and_nothing_else() -> None:
    conversations = [
        _turns("Hello  there"),  # 0: the same text as 1 but for case and white space
        _turns("hello there "),
        _turns("hello there", "yes?", "tell me"),  # 2: begins with 0
        _turns("hello", "there"),  # 3: the same characters in other turns
        _turns("q"),  # 4 and 5 share a cluster field, 5 and 6 a conversation field
        _turns("r"),
        _turns("s"),
        _turns("tell me"),  # 7: a later turn of 2 is no prefix
    ]
    clusters = ["k", None, None, None, "m", "m", None, None]
    dialogues = [None, None, None, None, None, "m", "m", "k"]
    found = find_clusters(_dataset(conversations, clusters=clusters, dialogues=dialogues)).tolist()
    groups = {frozenset(i for i, c in enumerate(found) if c == cluster) for cluster in found}
    assert groups == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4, 5, 6}), frozenset({7})}


def test_clusters_span_data_sets() -> None:
    found = find_clusters(_dataset([_turns("a"), _turns("b")]), _dataset([_turns("B"), _turns("c")]))
    assert found[1] == found[2]
    assert len(set(found.tolist())) == 3


def test_the_shares_are_those_asked_for() -> None:
    split = split_rows(_dataset(_texts(1000)), SplitConfig())
    assert [getattr(split, part).size for part in PARTS] == [600, 200, 200]
    rng = np.random.default_rng(0)
    clusters = [str(name) for name in rng.integers(0, 300, 1000)]
    split = split_rows(_dataset(_texts(1000), clusters=list(clusters)), SplitConfig())
    assert split.train.size == pytest.approx(600, abs=10)
    assert split.calibration.size + split.left_out == pytest.approx(200, abs=10)
    assert split.test.size + split.test_left_out == pytest.approx(200, abs=10)


def test_a_seed_decides_everything() -> None:
    clusters: list[str | None] = [str(i // 3) for i in range(300)]
    one, same, other = (
        split_rows(_dataset(_texts(300), clusters=clusters), SplitConfig(seed=seed)) for seed in (1, 1, 2)
    )
    for part in PARTS:
        np.testing.assert_array_equal(getattr(one, part), getattr(same, part))
        assert set(getattr(one, part)) != set(getattr(other, part))


def test_a_split_field_decides_where_no_shares_are_written() -> None:
    parts: list[str | None] = ["test", "train", "calibration", "train", "calibration"]
    dataset = _dataset(_texts(5), parts=parts)
    split = split_rows(dataset, SplitConfig(seed=3))
    assert [getattr(split, part).tolist() for part in PARTS] == [[1, 3], [2, 4], [0]]
    dataset = _dataset(_texts(100), parts=["dev"] * 100)
    assert split_rows(dataset, SplitConfig(train=0.6, calibration=0.2, test=0.2)).train.size == 60


@pytest.mark.parametrize(
    ("third", "problem"), [(None, "split is missing"), ("dev", "split 'dev' is unknown"), ("test", "another split")]
)
def test_a_bad_split_field_is_named(third: str | None, problem: str) -> None:
    conversations = [*_texts(2), Conversation.from_text("TEXT 0")]
    dataset = _dataset(conversations, parts=["train", "calibration", third])
    with pytest.raises(DataError, match=problem) as caught:
        split_rows(dataset, SplitConfig())
    assert caught.value.row == 3


def test_dependent_calibration_and_test_rows_count_once_and_training_rows_all_count() -> None:
    parts: list[str | None] = [*["train"] * 2, *["test"] * 3, *["calibration"] * 4]
    clusters: list[str | None] = ["t", "t", "u", "u", None, "a", "a", "a", "b"]
    split = split_rows(_dataset(_texts(9), parts=parts, clusters=clusters), SplitConfig())
    assert (split.train.size, split.calibration.size, split.test.size) == (2, 2, 2)
    assert (split.left_out, split.test_left_out) == (2, 1)


@pytest.mark.parametrize(
    ("rows", "clusters", "problem"),
    [
        (([0, 1], [1], [2]), [0, 1, 2], "row 1 is in"),
        (([0], [1], [2]), [0, 1, 0], "row 0 is in"),
        (([0], [1, 3], [2]), [0, 1, 2, 1], "two calibration rows depend on each other"),
        (([0], [1], [2, 3]), [0, 1, 2, 2], "two test rows depend on each other"),
        (([0], [], [2]), [0, 1, 2], "none are left for calibration"),
    ],
)
def test_a_split_that_would_void_the_certificate_is_refused(
    rows: tuple[list[int], ...], clusters: list[int], problem: str
) -> None:
    train, calibration, test = (np.array(part, dtype=np.int64) for part in rows)
    with pytest.raises(DataError, match=problem):
        Split(train, calibration, test, np.array(clusters), certified=calibration, counted=test)


def test_digests_know_their_rows_and_whatever_begins_with_them() -> None:
    digests = row_digests([_turns("Hello  there"), _turns("one", "two"), _turns("hello THERE")])
    assert digests.size == 2
    rows = [_turns("hello there"), _turns("hello there", "yes"), _turns("one"), _turns("one", "two", "three")]
    assert begin_with(rows, digests).tolist() == [True, True, False, True]
