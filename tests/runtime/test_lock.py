"""One writer at a time, over real processes."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ctd_guardrail.errors import ConfigError, PolicyLockedError
from ctd_guardrail.policy.store import CalibrationScores, read_policy
from ctd_guardrail.runtime.lock import LOCK_FILE, writing
from tests.support.policies import write_plain_policy
from tests.support.writers import holding, line, start

ROWS = 60
WRITE = """
import sys
from pathlib import Path
import numpy as np
from tests.support.policies import write_plain_policy
from ctd_guardrail.errors import PolicyLockedError
from ctd_guardrail.policy.store import CalibrationScores
folder, writer = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
written = 0
for _ in range(40):
    d = np.full(60, float(writer))
    scores = CalibrationScores.from_rows(d=d, p=np.full(60, 0.5))
    try:
        write_plain_policy(folder, rows=60, scores=scores, expert=f"judge-{writer}")
        written += 1
    except PolicyLockedError:
        pass
print(written, flush=True)
"""


def write(folder: Path, expert: str = "judge") -> None:
    scores = CalibrationScores.from_rows(d=np.arange(float(ROWS)), p=np.full(ROWS, 0.5))
    write_plain_policy(folder, rows=ROWS, scores=scores, expert=expert)


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    write(tmp_path, "judge-1")
    with holding(tmp_path):
        with pytest.raises(PolicyLockedError) as error:
            write(tmp_path, "judge-2")
        assert str(tmp_path / LOCK_FILE) in str(error.value)
        assert "Wait until it has ended" in error.value.hint
        assert read_policy(tmp_path).manifest.expert == "judge-1"  # readers need no lock
    write(tmp_path, "judge-2")
    assert read_policy(tmp_path).manifest.expert == "judge-2"


def test_a_writer_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        other.kill()
        other.wait()
        write(tmp_path)


def test_writers_at_the_same_time_leave_whole_policies(tmp_path: Path) -> None:
    processes = [start(WRITE, tmp_path, number) for number in range(3)]
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    written = [int(process.communicate()[0]) for process in processes]
    assert sum(written) >= 1
    policy = read_policy(tmp_path)
    assert policy.manifest.expert == f"judge-{int(policy.scores.d[0])}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", LOCK_FILE, "policy.safetensors"]


def test_blocks_of_one_thread_lie_in_one_another_and_threads_exclude_each_other(tmp_path: Path) -> None:
    refused: list[Exception] = []

    def try_to_write() -> None:
        try:
            write(tmp_path)
        except PolicyLockedError as error:
            refused.append(error)

    with writing(tmp_path), writing(tmp_path):
        write(tmp_path)
        thread = threading.Thread(target=try_to_write)
        thread.start()
        thread.join()
    assert len(refused) == 1
    write(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"file.*cannot be written to"):
        write(tmp_path / "file")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / LOCK_FILE).symlink_to(tmp_path / "elsewhere" / "file")
    with pytest.raises(ConfigError, match="cannot be written to"):
        write(tmp_path / "policy")
