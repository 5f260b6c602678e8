"""Policies from strangers: none of thirty hostile folders is loaded, runs code or fills the memory."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.artefacts import ARTEFACTS, CANARY, N
from tests.support.policies import write_plain_policy

# In a process of its own: the peak of its memory is then the reader's.
READER = """
import json, pathlib, sys
from ctd_guardrail.errors import PolicyFormatError, PolicyIntegrityError
from ctd_guardrail.policy.store import read_policy

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

sound, *folders = sys.argv[1:]
read_policy(pathlib.Path(sound))
before, answers = peak(), {}
for folder in folders:
    try:
        read_policy(pathlib.Path(folder))
    except (PolicyFormatError, PolicyIntegrityError) as error:
        answers[folder] = str(error)
print(json.dumps({"answers": answers, "grown": peak() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_no_hostile_folder_is_loaded_runs_code_or_fills_the_memory(record: Callable[..., None], tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    write_plain_policy(sound, rows=N)
    folders = {}
    for number, (name, spoil) in enumerate(ARTEFACTS.items()):
        folders[name] = shutil.copytree(sound, tmp_path / f"{number:02d}")
        spoil(folders[name])
    command = [sys.executable, "-c", READER, str(sound), *map(str, folders.values())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    report = json.loads(done.stdout)
    assert not list(tmp_path.rglob(CANARY))
    assert report["grown"] < 64 << 10, "kilobytes"
    held = {name for name, folder in folders.items() if str(folder) in report["answers"].get(str(folder), "")}
    assert set(folders) - held == set()
    record("hostile_artefact", len(held), len(ARTEFACTS), figure=f"memory grew by {report['grown'] / 1024:.1f} MiB")


def test_links_inside_a_mounted_folder_are_followed(tmp_path: Path) -> None:
    from ctd_guardrail.policy.store import read_policy  # noqa: PLC0415

    folder = tmp_path / "mount"
    write_plain_policy(folder / "..data", rows=N)
    for file in list((folder / "..data").iterdir()):
        (folder / file.name).symlink_to(Path("..data") / file.name)
    assert np.isfinite(read_policy(folder).scores.d).all()
