from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.activations import vllm
from tests.support.vllm_double import VllmDouble


def test_without_vllm_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="vLLM is not on this machine"):
        vllm.main(["--policy", str(tmp_path), "--export", str(tmp_path)])


def test_with_a_server_it_compares_scores_and_rates(
    exported: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, export = exported()
    double = VllmDouble(export)
    options = ["--policy", str(folder), "--export", str(export), "--base-url", double.base_url, "--device", "cpu"]
    vllm.main([*options, "--texts", "16"])
    double.stop()
    printed = capsys.readouterr().out
    assert "routes that differ: 0 of 16" in printed
    assert printed.count("\n| ") == 1 + len(vllm.CONCURRENCIES)
