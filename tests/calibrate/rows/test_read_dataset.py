"""Rows are read whole or refused with file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrate.rows.data import read_dataset
from ctd_guardrail.errors import DataError
from ctd_guardrail.text.conversation import Conversation

Write = Callable[..., Path]

_SAFE = {"text": "hello", "label": 0}
_UNSAFE = {"text": "harm", "label": 1}


def test_text_and_messages_become_conversations(write_rows: Write) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "tool", "content": "result"},
    ]
    file = write_rows([_SAFE, {"messages": messages, "label": 1}])
    dataset = read_dataset([file])
    assert dataset.conversations[0] == Conversation.from_text("hello")
    assert [turn.role for turn in dataset.conversations[1].messages] == ["user", "assistant", "user"]
    assert dataset.labels.tolist() == [0.0, 1.0]
    assert dataset.expert is None
    assert dataset.groups is None
    assert dataset.parts is None


def test_optional_fields_are_kept_and_others_ignored(write_rows: Write) -> None:
    fields = {"id": 7, "group": "g", "split": "train", "cluster": 3, "conversation": "c", "strong": 1, "note": [1]}
    dataset = read_dataset([write_rows([_SAFE | fields, _UNSAFE | {"strong": 0.25}])], expert_column="strong")
    assert dataset.expert is not None
    assert dataset.expert.tolist() == [1.0, 0.25]
    assert dataset.groups == ["g", "rows"]
    assert dataset.parts == ["train", None]
    assert dataset.clusters == ["3", None]
    assert dataset.dialogues == ["c", None]


def test_several_files_name_the_groups_and_keep_their_lines(write_rows: Write, tmp_path: Path) -> None:
    one = write_rows([_SAFE | {"id": "a"}, _UNSAFE | {"id": "b"}], "one.jsonl")
    two = tmp_path / "two.jsonl.gz"
    content = "\n".join(["", json.dumps(_SAFE | {"id": "a"}), "  ", json.dumps(_UNSAFE | {"group": "own"})])
    two.write_bytes(gzip.compress(content.encode()))
    dataset = read_dataset([one, two])
    assert dataset.groups == ["one", "one", "two", "own"]
    assert dataset.line_of_row.tolist() == [1, 2, 2, 4]
    assert [(record.file, record.rows) for record in dataset.records] == [("one.jsonl", 2), ("two.jsonl.gz", 2)]
    assert dataset.records[1].sha256 == hashlib.sha256(two.read_bytes()).hexdigest()
    assert str(dataset.error(3, "is odd")) == f"{two}, row 4: is odd"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(_SAFE)}\n{json.dumps(_UNSAFE)}", encoding="utf-8-sig")
    assert len(read_dataset([file])) == 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"label": 0}, "neither text nor messages"),
        ({"text": "a", "messages": [], "label": 0}, "both text and messages"),
        ({"text": "", "label": 0}, "no text to screen"),
        ({"text": " \n\t", "label": 0}, "no text to screen"),
        ({"text": 5, "label": 0}, "text is not a string"),
        ({"messages": "a", "label": 0}, "messages is not a list"),
        ({"messages": [], "label": 0}, "no text to screen"),
        ({"messages": [{"role": "system", "content": "a"}], "label": 0}, "no text to screen"),
        ({"messages": ["a"], "label": 0}, "message 1 is a str"),
        ({"messages": [{"role": "wizard", "content": "a"}], "label": 0}, "unknown role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "label": 0}, "not text"),
        ({"text": "a"}, "label is missing"),
        ({"text": "a", "label": None}, "label is missing"),
        ({"text": "a", "label": 2}, "neither 0 nor 1"),
        ({"text": "a", "label": 0.5}, "neither 0 nor 1"),
        ({"text": "a", "label": True}, "neither 0 nor 1"),
        ({"text": "a", "label": "1"}, "neither 0 nor 1"),
        ({"text": "a", "label": float("nan")}, "neither 0 nor 1"),
        ({"text": "a", "label": 0, "id": "first"}, "the id is also the id of row 1"),
        ({"text": "a", "label": 0, "id": 1.5}, "id is not a string"),
        ({"text": "a", "label": 0, "group": ["x"]}, "group is not a string"),
        ({"text": "a", "label": 0, "cluster": True}, "cluster is not a string"),
    ],
)
def test_a_malformed_row_is_named(write_rows: Write, row: dict[str, Any], problem: str) -> None:
    file = write_rows([_SAFE | {"id": "first"}, _UNSAFE, row])
    with pytest.raises(DataError, match=problem) as caught:
        read_dataset([file])
    assert caught.value.file == file
    assert caught.value.row == 3
    assert str(caught.value).startswith(f"{file}, row 3: ")


@pytest.mark.parametrize("score", [None, "0.5", True, -0.1, 1.1, float("nan"), float("inf")])
def test_an_expert_score_that_is_no_probability_is_named(write_rows: Write, score: object) -> None:
    file = write_rows([_SAFE | {"strong": 0.1}, _UNSAFE | {"strong": score}])
    with pytest.raises(DataError, match="expert score 'strong'") as caught:
        read_dataset([file], expert_column="strong")
    assert caught.value.row == 2


def test_an_empty_expert_score_does_not_suggest_its_own_column(write_rows: Write) -> None:
    with pytest.raises(DataError, match="names a score that every row has"):
        read_dataset([write_rows([_SAFE | {"strong": None}])], expert_column="strong")


def test_a_misspelt_expert_column_gets_a_suggestion(write_rows: Write) -> None:
    with pytest.raises(DataError, match="Did you mean 'expert_strong'"):
        read_dataset([write_rows([_SAFE | {"expert_strong": 0.1}])], expert_column="expert_stong")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(_SAFE).encode() + b"\n" + content + b"\n")
    with pytest.raises(DataError, match=problem) as caught:
        read_dataset([file])
    assert caught.value.row == 2


def test_a_file_that_is_missing_empty_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_dataset([tmp_path / "absent.jsonl"])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_dataset([empty])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_dataset([plain])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "a", "label": 0}\n' * 1000)[:-20])
    with pytest.raises(DataError, match="damaged gzip data"):
        read_dataset([cut])


@pytest.mark.parametrize(("label", "missing"), [(0, "unsafe"), (1, "safe")])
def test_a_label_that_never_occurs_is_named(write_rows: Write, label: int, missing: str) -> None:
    with pytest.raises(DataError, match=rf"no row has label {1 - label} \({missing}\)"):
        read_dataset([write_rows([{"text": "a", "label": label}])])


def test_errors_hold_no_text_of_the_rows(write_rows: Write) -> None:
    with pytest.raises(DataError) as caught:
        read_dataset([write_rows([{"text": "canary", "label": "canary"}])])
    assert "canary" not in str(caught.value)
