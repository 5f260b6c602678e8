"""A calibration that is killed at any moment leaves the policy that was there, or the new one, and goes on later."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctd_guardrail.errors import PolicyFormatError
from ctd_guardrail.policy.store import read_policy

ROOT = Path(__file__).parents[2]
ROWS = 200
CONCURRENCY = 8


class Runs:
    """The process that runs and kills calibrations."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, config: Path, *, kill_after: float = -1.0) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kill_after} {config}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def runs() -> Iterator[Runs]:
    process = Runs()
    yield process
    process.close()


def write_config(folder: Path, *, seed: int, judge: Any, model: Path, output: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rng = random.Random(7)
    words = ["bread", "garden", "letter", "music", "zzyx", "qqqv", "harmful", "jzjz"]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(ROWS):
            chosen = rng.choices(words, k=6)
            label = int(sum(word in words[4:] for word in chosen) > 3)
            file.write(json.dumps({"text": f"{number} {' '.join(chosen)}", "label": label}) + "\n")
    expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "max_concurrency": CONCURRENCY}
    content = {
        "base": {"model": str(model), "layers": 1, "site": "residual", "device": "cpu"},
        "data": {"path": "rows.jsonl"},
        "expert": expert,
        "budget": {"alpha": 0.3, "delta": 0.1},
        "splits": {"seed": seed},
        "output": str(output),
    }
    path = folder / f"seed-{seed}.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def content(policy: Path) -> str | None:
    """Return a hash of what a reader of the policy sees; None where there is no policy yet."""
    if not (policy / "policy.json").exists():
        with pytest.raises(PolicyFormatError):
            read_policy(policy)
        return None
    return hashlib.sha256(read_policy(policy).manifest.tensors_sha256.encode()).hexdigest()


def test_a_calibration_that_is_killed_is_never_half_written(
    runs: Runs,
    judge: Any,
    tiny_bert: Path,
    tmp_path: Path,
    trials: Callable[..., int],
    record: Callable[..., None],
) -> None:
    whole = {}
    for seed in (0, 1):
        output = tmp_path / f"whole-{seed}"
        config = write_config(tmp_path / f"apart-{seed}", seed=seed, judge=judge, model=tiny_bert, output=output)
        start = time.monotonic()
        assert runs.run(config) == "0"
        seconds = time.monotonic() - start
        whole[seed] = content(output)
    assert whole[0] != whole[1]

    together = tmp_path / "together"
    policy = tmp_path / "policy"
    configs = [write_config(together, seed=seed, judge=judge, model=tiny_bert, output=policy) for seed in (0, 1)]
    asked = judge.calls
    total = trials(full=50, reduced=2)
    rng = random.Random(1)
    held, kills = 0, 0
    for number in range(total):
        kills += runs.run(configs[number % 2], kill_after=rng.uniform(0.0, 1.1 * seconds)) == "killed"
        held += content(policy) in {None, *whole.values()}
    assert runs.run(configs[1]) == "0"
    assert content(policy) == whole[1]
    # An answer that was under way at a kill is asked for again; all others are paid for once.
    asked = judge.calls - asked
    assert ROWS <= asked <= ROWS + kills * CONCURRENCY
    record("killed_calibration", held, total, figure=f"{kills} of the runs were killed before they ended")
