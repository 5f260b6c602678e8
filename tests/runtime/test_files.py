"""The one atomic writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctd_guardrail.runtime.files import write_whole


@pytest.mark.parametrize(("content", "stored"), [("a\nß", "a\nß".encode()), (b"\x00\xff", b"\x00\xff")])
def test_it_writes_text_and_bytes_and_makes_the_folder(content: str | bytes, stored: bytes, tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    write_whole(file, content)
    write_whole(file, content)
    assert file.read_bytes() == stored
    assert [each.name for each in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_where_it_fails_the_old_content_stays_alone(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
