"""Without ray a run says what to do."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrate.cli.app import app


def test_without_ray_the_run_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
    dataset: Any,
    tiny_bert: Path,
    expert_section: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    (tmp_path / "CALIBRATE.yml").write_text(
        f"base: {{model: {tiny_bert}, layers: 1, site: residual}}\n"
        f"data: {{path: {dataset.files[0]}}}\n"
        f"expert: {expert_section()}\n"
        "budget: {alpha: 0.3, delta: 0.2}\n"
        "run_on: {type: ray}\n"
        "output: ./policy\n"
    )
    done = CliRunner().invoke(app, ["run", str(tmp_path / "CALIBRATE.yml")])
    assert done.exit_code == 2
    assert "pip install 'ctd-guardrail[ray]'" in done.output
