from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm_double import VllmDouble


@pytest.fixture
def vllm_live(monkeypatch: pytest.MonkeyPatch) -> Any:
    # As scripts find it: in their own folder.
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("vllm_live")


def test_without_vllm_it_says_so(vllm_live: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="vLLM is not on this machine"):
        vllm_live.main(["--policy", str(tmp_path), "--export", str(tmp_path)])


def test_with_a_server_it_compares_scores_and_rates(
    vllm_live: Any, exported: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, export = exported()
    double = VllmDouble(export)
    options = ["--policy", str(folder), "--export", str(export), "--base-url", double.base_url, "--device", "cpu"]
    vllm_live.main([*options, "--texts", "16"])
    double.stop()
    printed = capsys.readouterr().out
    assert "routes that differ: 0 of 16" in printed
    assert printed.count("\n| ") == 1 + len(vllm_live.CONCURRENCIES)
