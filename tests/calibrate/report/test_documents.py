"""The documents of a policy, from a whole run on a tiny base model."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.file import PriceConfig
from calibrate.report.reproducibility import read_prices
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.lock import LOCK_FILE


@pytest.fixture(scope="module")
def folder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a calibration on the command line leaves behind."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    words = [["zzyx", "qqqv", "xjxj"], ["bread", "river", "music"]]
    rows = [
        {"text": " ".join(rng.choice(words[i % 2], 6)) + f" {i}", "label": 1 - i % 2, "expert": float(rng.random())}
        for i in range(300)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "base": {"model": str(tiny_bert), "layers": 1, "site": "residual", "device": "cpu"},
        "data": {"path": "rows.jsonl", "expert_column": "expert"},
        "budget": {"alpha": 0.2, "delta": 0.1},
        "prices": {"expert_call": 0.01},
        "output": "./policy",
    }
    (folder / "CALIBRATE.yml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["run", str(folder / "CALIBRATE.yml")], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"Report: {folder / 'policy' / 'report.html'}" in result.stdout
    return folder


def test_a_run_leaves_report_card_and_recipe_beside_the_policy(folder: Path) -> None:
    names = {path.name for path in (folder / "policy").iterdir()} - {LOCK_FILE}
    assert names == {"policy.json", "policy.safetensors", "report.html", "MODEL_CARD.md", "reproducibility.json"}


def test_no_document_holds_text_of_a_row(folder: Path) -> None:
    for name in ("report.html", "MODEL_CARD.md", "reproducibility.json"):
        text = (folder / "policy" / name).read_text(encoding="utf-8")
        assert "zzyx" not in text
        assert "bread" not in text


def test_the_recipe_has_what_it_takes(folder: Path) -> None:
    recipe: dict[str, Any] = json.loads((folder / "policy" / "reproducibility.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "policy" / "policy.json").read_text(encoding="utf-8"))
    assert recipe["command"] == ["ctd-calibrate", "run", "../CALIBRATE.yml"]
    assert recipe["data"] == manifest["data"]
    assert recipe["versions"] == manifest["versions"]
    assert recipe["policy_tensors_sha256"] == manifest["tensors_sha256"]
    assert recipe["host"]["machine"] == platform.machine()
    assert recipe["seed"] == 0


def test_paths_of_the_recipe_start_from_the_policys_folder(folder: Path) -> None:
    policy = folder / "policy"
    configuration = json.loads((policy / "reproducibility.json").read_text(encoding="utf-8"))["configuration"]
    assert configuration["data"]["path"] == ["../rows.jsonl"]
    assert configuration["output"] == "."
    assert (policy / configuration["base"]["model"] / "config.json").exists()


def test_an_evaluation_finds_the_prices_of_the_calibration(folder: Path, tmp_path: Path) -> None:
    assert read_prices(folder / "policy") == PriceConfig(expert_call=0.01)
    assert read_prices(tmp_path) is None
    (tmp_path / "reproducibility.json").write_text('{"configuration": {"prices": {"expert_call": -1}}}')
    with pytest.raises(ConfigError, match=r"configuration\.prices\.expert_call"):
        read_prices(tmp_path)
