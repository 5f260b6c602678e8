import os
from pathlib import Path

import pytest

from ctd_guardrail.monitors.write_ahead import WriteAheadLog


def test_the_updates_of_one_save_are_read_in_order(tmp_path: Path) -> None:
    log = WriteAheadLog(tmp_path / "log")
    assert log.read("first") == []
    log.append("first", ["a", 1])
    log.append("second", ["b", [0.1]])
    log.append("second", ["c"])
    assert log.read("second") == [["b", [0.1]], ["c"]]
    assert WriteAheadLog(tmp_path / "log").read("first") == [["a", 1]]


def test_a_cleared_log_goes_on_from_its_beginning(tmp_path: Path) -> None:
    log = WriteAheadLog(tmp_path / "log")
    log.clear()
    log.append("first", ["a"])
    log.clear()
    log.append("first", ["b"])
    log.close()
    log.append("first", ["c"])
    assert log.read("first") == [["b"], ["c"]]


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_last_line_is_dropped_wherever_it_is_torn(tmp_path: Path, cut: int) -> None:
    log = WriteAheadLog(tmp_path / "log")
    log.append("s", ["whole"])
    log.append("s", ["torn"])
    content = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(content[:-cut])
    assert log.read("s") == [["whole"]]


def test_nothing_after_a_damaged_line_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_text('["s", "a"]\n{"s"\n["s", "c"]\n')
    assert WriteAheadLog(tmp_path / "log").read("s") == [["a"]]
    assert "line 2 is damaged" in caplog.text


def test_numbers_that_json_lacks_are_refused_and_leave_no_line(tmp_path: Path) -> None:
    log = WriteAheadLog(tmp_path / "log")
    with pytest.raises(ValueError, match="JSON"):
        log.append("s", [float("nan")])
    assert log.read("s") == []


def test_a_line_that_is_cut_on_a_full_disk_leaves_the_log_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = WriteAheadLog(tmp_path / "log")
    written.append("save", ["first"])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda stream, line: write(stream, line[:5]))
        with pytest.raises(OSError, match="No space left"):
            written.append("save", ["second"])
    written.append("save", ["third"])
    assert written.read("save") == [["first"], ["third"]]
