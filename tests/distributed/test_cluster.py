"""Without ray, and with too little of a cluster, a run says what to do."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrate.cli import app
from calibrate.distributed.cluster import connect
from calibrate.distributed.config import RayConfig
from ctd_guardrail.errors import ConfigError


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


@pytest.mark.parametrize("config", [{"actors": 64}, {"gpus_per_actor": 0.5}], ids=str)
def test_actors_that_no_machine_has_room_for_are_refused(run_on: RayConfig, config: dict[str, Any]) -> None:
    with (
        pytest.raises(ConfigError, match=r"run_on\.actors: .* do not fit"),
        connect(run_on.model_copy(update=config)),
    ):
        pytest.fail("there is no such cluster")
