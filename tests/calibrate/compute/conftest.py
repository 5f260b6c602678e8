"""One Ray on this machine for all tests of this folder, and a judge that remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.compute.cluster import connect
from calibrate.config.cluster import RayConfig
from calibrate.rows.data import Dataset, read_dataset
from tests.support.loopback_judge import RowJudge

ROWS = 60


@pytest.fixture(scope="session")
def run_on() -> Iterator[RayConfig]:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    config = RayConfig(type="ray", actors=2)
    with connect(config):
        yield config
    assert not ray.is_initialized()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    words = ["meadow", "carrot", "violin", "zzyx", "qqqv", "xjxj"]
    rows = [
        {"text": f"row-{i:04d} {' '.join(rng.choice(words, int(rng.integers(1, 12))))} 🜂", "label": i % 2}
        for i in range(ROWS)
    ]
    rows[7]["text"] = "a long row " * 30
    rows[9]["text"] = rows[8]["text"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset([file])


@pytest.fixture
def row_judge() -> Iterator[RowJudge]:
    judge = RowJudge()
    yield judge
    judge.close()


@pytest.fixture
def expert_section(row_judge: RowJudge) -> Callable[..., dict[str, Any]]:
    """The section of CALIBRATE.yml for this judge."""

    def make(**changes: Any) -> dict[str, Any]:
        section = {"type": "openai", "base_url": row_judge.base_url, "model": "judge", "max_concurrency": 4}
        return section | changes

    return make
