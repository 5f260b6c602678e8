from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from calibrate.demo.grammar import GROUPS, Family, Kind, load_families, load_frames, render
from calibrate.demo.prompts import DemoFiles, write_dataset
from ctd_guardrail.errors import DataError

_NAMES = ("expert", "prompts", "unseen")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _turns(row: dict[str, Any]) -> list[str]:
    return [row["text"]] if "text" in row else [message["content"] for message in row["messages"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_dataset(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def parts(files: DemoFiles) -> dict[str, list[dict[str, Any]]]:
    return {name: _rows(getattr(files, name)) for name in _NAMES}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(files: DemoFiles, tmp_path: Path) -> None:
    again, other = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b", seed=1)
    for name in _NAMES:
        assert getattr(again, name).read_bytes() == getattr(files, name).read_bytes()
        assert getattr(other, name).read_bytes() != getattr(files, name).read_bytes()


def test_there_are_as_many_rows_as_asked_for_in_their_shares(parts: dict[str, list[dict[str, Any]]]) -> None:
    sizes = {name: len(rows) for name, rows in parts.items()}
    assert sum(sizes.values()) == 6000
    assert 2200 < sizes["expert"] < 2700
    assert 2800 < sizes["prompts"] < 3400
    assert 350 < sizes["unseen"] < 550


def test_more_rows_than_the_grammar_can_make_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different requests, not"):
        write_dataset(tmp_path / "data", rows=10**6)
    assert not (tmp_path / "data").exists()


def test_no_family_is_in_two_files(parts: dict[str, list[dict[str, Any]]]) -> None:
    where = Counter(cluster for rows in parts.values() for cluster in {row["cluster"] for row in rows})
    assert set(where.values()) == {1}
    assert len(where) > 850


def test_ids_and_requests_are_unique(parts: dict[str, list[dict[str, Any]]]) -> None:
    rows = [row for part in parts.values() for row in part]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({tuple(_turns(row)) for row in rows}) == len(rows)


def test_two_in_five_rows_are_harmful_in_every_file_and_topic(parts: dict[str, list[dict[str, Any]]]) -> None:
    for rows in parts.values():
        assert 0.36 < sum(row["label"] for row in rows) / len(rows) < 0.46
        assert {row["group"] for row in rows} == set(GROUPS)
    for group in GROUPS:
        labels = [row["label"] for row in parts["prompts"] if row["group"] == group]
        assert 0.33 < sum(labels) / len(labels) < 0.50


def test_a_tenth_are_conversations_that_begin_and_end_with_the_user(parts: dict[str, list[dict[str, Any]]]) -> None:
    rows = [row for part in parts.values() for row in part]
    conversations = [row["messages"] for row in rows if "messages" in row]
    assert 0.08 < len(conversations) / len(rows) < 0.12
    for messages in conversations:
        assert len(messages) in {3, 5}
        assert [message["role"] for message in messages] == (["user", "assistant"] * 3)[: len(messages)]


def test_no_slot_is_left_open(parts: dict[str, list[dict[str, Any]]]) -> None:
    for row in (row for part in parts.values() for row in part):
        for turn in _turns(row):
            assert turn.strip() == turn
            assert not re.search(r"[{}|]|  ", turn)


def test_every_topic_has_every_kind_and_no_pattern_is_written_twice() -> None:
    families = load_families()
    kinds = {(family.group, family.kind) for family in families}
    assert kinds == {(group, kind) for group in GROUPS for kind in Kind}
    assert len({(family.kind, family.pattern) for family in families}) == len(families)


def test_every_frame_puts_its_parts_where_they_belong() -> None:
    for name, frames in load_frames().lists.items():
        slots = {"purpose": ["act", "goal"]}.get(name, ["act"])
        if name in {"wish", "support", "hinder", "reflect", "insist", "purpose"}:
            assert all(sorted(re.findall(r"\{(\w+)\}", frame)) == slots for frame in frames)
            assert len(set(frames)) == len(frames)


def test_pronouns_follow_the_person_who_acts() -> None:
    frames = load_frames()
    family = Family("privacy/protective/0", "privacy", Kind.PROTECTIVE, "keep {my} own passport")
    supports = [frame.split("{act}")[0] for frame in frames.lists["support"]]
    rng = random.Random(0)
    texts = {render(family, frames, rng).text for _ in range(100)}
    assert any(" my own" in text for text in texts)
    assert any(" their own" in text for text in texts)
    for text in texts:
        speaks_of_another = any(text.startswith(start) for start in supports)
        assert (" their own" in text) == speaks_of_another
