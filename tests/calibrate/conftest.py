"""Labelled conversations that a random base model can tell apart a little, and folders to calibrate in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

Row = dict[str, Any]

_SAFE = ["bread", "garden", "letter", "music", "river", "paper", "window", "summer"]
_UNSAFE = ["zzyx", "qqqv", "xjxj", "vvkw", "kqzk", "wxyz", "jzjz", "harmful"]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[Row]]:
    """Rows with a noisy expert; a text is unsafe when strange words outnumber plain ones."""

    def make(count: int = 400, *, seed: int = 0) -> list[Row]:
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(count):
            strange = int(rng.integers(0, 8))
            words = [*rng.choice(_UNSAFE, strange), *rng.choice(_SAFE, 7 - strange)]
            rng.shuffle(words)
            label = int(strange > 3)
            expert = float(np.clip(0.15 + 0.7 * label + rng.normal(0, 0.2), 0, 1))
            rows.append({"id": f"r{number}", "text": f"{number} {' '.join(words)}", "label": label, "expert": expert})
        return rows

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines into the test's folder."""

    def write(rows: list[Row], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_config(tmp_path: Path, tiny_bert: Path) -> Callable[..., Path]:
    """Write CALIBRATE.yml for `rows.jsonl` beside it; keyword arguments replace sections, None removes one."""

    def write(**sections: Any) -> Path:
        content = {
            "base": {"model": str(tiny_bert), "layers": 1, "site": "residual", "device": "cpu"},
            "data": {"path": "rows.jsonl", "expert_column": "expert"},
            "budget": {"alpha": 0.2, "delta": 0.1},
            "output": "./policy",
        }
        path = tmp_path / "CALIBRATE.yml"
        sections = {name: value for name, value in (content | sections).items() if value is not None}
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    return write
