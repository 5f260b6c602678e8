"""The main job, offline: rows in, a policy out that the rail's own code reads and agrees with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from calibrate.cli.app import app
from calibrate.config.file import load_config
from calibrate.pipeline.run import PipelineResult, run
from calibrate.report.documents import write_documents
from calibrate.rows.data import read_dataset
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.errors import ConfigError, DataError, InfeasibleBudgetError, PolicyIntegrityError
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.store import read_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.runtime.lock import LOCK_FILE
from tests.support.writers import holding

Row = dict[str, Any]
Make = Callable[..., list[Row]]
Write = Callable[..., Path]


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of windows of every forward pass."""
    counts: list[int] = []
    original = HuggingFaceSource.activations

    def counting(self: HuggingFaceSource, windows: Sequence[tuple[int, ...]]) -> Any:
        counts.append(len(windows))
        return original(self, windows)

    monkeypatch.setattr(HuggingFaceSource, "activations", counting)
    return counts


@contextmanager
def _warm(config: Path, forwarded: list[int]) -> Iterator[None]:
    """Hold the base model, so that no run loads it and warms it up; what that took is not counted."""
    base = load_config(config).base
    engine = load_base_model(base.spec, device=base.device)
    forwarded.clear()
    yield
    assert engine.spec == base.spec


def _run(config: Path) -> PipelineResult:
    return run(load_config(config), console=Console(quiet=True))


def test_a_run_writes_a_policy_that_holds_its_budget(
    make_rows: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    write_rows(make_rows())
    result = _run(write_config())
    policy = read_policy(tmp_path / "policy")
    manifest = policy.manifest
    assert manifest.expert == "recorded:expert"
    assert manifest.calibration.rows == 80
    assert manifest.training["split"] == {"train": 240, "calibration": 80, "test": 80}
    assert manifest.data[0].file == "rows.jsonl"
    assert set(manifest.versions) >= {"python", "ctd-guardrail", "torch", "transformers", "numpy", "scikit-learn"}
    assert manifest.evaluation["rows"] == 80
    for name in ("d", "p", "expert", "label"):
        np.testing.assert_array_equal(getattr(policy.calibration, name), getattr(result.policy.calibration, name))
    assert certify(policy.calibration.d, 0.2, 0.1) == result.certificate
    # The budget, and four standard deviations of 80 test rows around it.
    assert result.grid.cell("ctd", 0.2).figures["rate"].value <= 0.2 + 4 * np.sqrt(0.2 * 0.8 / 80)
    assert result.grid.cell("ctd", 0.5).figures["auroc"].value > result.grid.cell("probe", 0.5).figures["auroc"].value


@pytest.mark.parametrize("base", [{"layers": 1}, {"layers": [1, 2], "window": 24}])
async def test_the_policys_scores_are_those_that_the_rail_computes(
    make_rows: Make, write_rows: Write, write_config: Write, tiny_bert: Path, base: dict[str, Any]
) -> None:
    rows = write_rows(make_rows())
    result = _run(write_config(base={"model": str(tiny_bert), "site": "residual", "device": "cpu", **base}))
    conversations = read_dataset([rows]).conversations
    engine = load_base_model(result.policy.manifest.activations, device="cpu")
    probes = Probes(result.policy.manifest.probe, result.policy.probe)
    windows = [(await engine.run(conversations[row], probes)).rows for row in result.split.calibration]
    assert (max(map(len, windows)) > 1) == ("window" in base)
    online = np.array([over_windows(scores) for scores in windows])
    np.testing.assert_allclose(np.sort(online[:, 1]), result.policy.calibration.d, atol=1e-5)


def test_a_second_run_computes_and_asks_nothing_and_writes_the_same(
    make_rows: Make, write_rows: Write, write_config: Write, forwarded: list[int], judge: Any
) -> None:
    write_rows(make_rows())
    expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "max_concurrency": 4}
    config = write_config(data={"path": "rows.jsonl"}, expert=expert)
    with _warm(config, forwarded):
        first = _run(config)
        assert sum(forwarded) == judge.calls == first.expert.asked == 400
        second = _run(config)
        assert sum(forwarded) == judge.calls == 400
    assert second.expert.asked == 0
    assert second.policy.manifest.expert.startswith("openai:judge:")
    assert second.policy.manifest.tensors_sha256 == first.policy.manifest.tensors_sha256


def test_calibration_and_test_rows_that_do_not_count_cost_nothing(
    make_rows: Make, write_rows: Write, write_config: Write, forwarded: list[int]
) -> None:
    rows = make_rows()
    for number, row in enumerate(rows):
        row["cluster"] = number // 2
    write_rows(rows)
    config = write_config()
    with _warm(config, forwarded):
        result = _run(config)
    assert (result.split.left_out, result.split.test_left_out) == (40, 40)
    assert sum(forwarded) == 320
    assert result.certificate.n == 40


def test_another_seed_is_another_policy(make_rows: Make, write_rows: Write, write_config: Write) -> None:
    write_rows(make_rows())
    hashes = {_run(write_config(splits={"seed": seed})).policy.manifest.tensors_sha256 for seed in (0, 1)}
    assert len(hashes) == 2


def test_the_safety_probe_may_come_from_other_rows(make_rows: Make, write_rows: Write, write_config: Write) -> None:
    rows = make_rows()
    write_rows(rows)
    copies = [{"text": row["text"].upper(), "label": row["label"]} for row in rows[:30]]
    others = [{"text": f"other {row['text']}", "label": row["label"]} for row in make_rows(120, seed=1)]
    write_rows([*copies, *others], "source.jsonl")
    result = _run(write_config(data={"path": "rows.jsonl", "expert_column": "expert", "safety_path": "source.jsonl"}))
    assert (result.safety_rows, result.safety_left_out) == (120, 30)
    assert [record.rows for record in result.policy.manifest.data] == [400, 150]
    assert result.policy.manifest.training["safety"]["rows"] == 120


def test_too_few_calibration_rows_are_refused_before_anything_is_written(
    make_rows: Make, write_rows: Write, write_config: Write, tmp_path: Path, forwarded: list[int]
) -> None:
    write_rows(make_rows())
    with pytest.raises(InfeasibleBudgetError) as caught:
        _run(write_config(budget={"alpha": 0.01, "delta": 0.05}))
    assert (caught.value.n_min, round(caught.value.alpha_min, 4)) == (299, 0.0368)
    assert "The smallest alpha that they can certify is 0.0368; alpha = 0.01 takes 299 rows" in str(caught.value)
    assert forwarded == []
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "CALIBRATE.yml"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[200].update(label=3), "row 201: label is neither 0 nor 1"),
        (lambda rows: rows[399].pop("expert"), "row 400: expert score 'expert' is missing"),
        (lambda rows: [row.update(label=int(i < 12)) for i, row in enumerate(rows)], "rows for training hold"),
        (lambda rows: rows.__setitem__(slice(20, None), []), "but 10 are needed"),
        (lambda rows: [row.update(split="train") for row in rows], "none are left for calibration"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(
    make_rows: Make,
    write_rows: Write,
    write_config: Write,
    tmp_path: Path,
    change: Callable[[list[Row]], Any],
    problem: str,
) -> None:
    rows = make_rows()
    change(rows)
    write_rows(rows)
    with pytest.raises(DataError, match=problem):
        _run(write_config())
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "CALIBRATE.yml"}


def test_test_rows_of_one_label_are_refused(make_rows: Make, write_rows: Write, write_config: Write) -> None:
    rows = make_rows()
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 200 else "calibration" if row["label"] else "test"
    write_rows(rows)
    with pytest.raises(DataError, match="test rows have one label"):
        _run(write_config())


def test_an_output_or_a_cache_that_is_a_file_is_refused(
    make_rows: Make, write_rows: Write, write_config: Write
) -> None:
    write_rows(make_rows())
    for key in ("output", "cache"):
        with pytest.raises(ConfigError) as caught:
            _run(write_config(**{key: "rows.jsonl"}))
        assert caught.value.key == key


def test_an_output_that_another_process_writes_is_refused_before_anything_is_computed(
    make_rows: Make, write_rows: Write, write_config: Write, tmp_path: Path, forwarded: list[int]
) -> None:
    write_rows(make_rows())
    config = write_config()
    with holding(tmp_path / "policy"):
        refused = _invoke("run", config)
    assert refused.exit_code == 2
    assert str(tmp_path / "policy" / LOCK_FILE) in refused.stderr
    assert not forwarded
    assert not (tmp_path / "policy" / "policy.json").exists()


def test_documents_are_not_written_beside_another_policy(
    make_rows: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    write_rows(make_rows())
    first, second = _run(write_config()), _run(write_config(splits={"seed": 5}))
    with pytest.raises(PolicyIntegrityError, match=r"policy\.json was replaced by another process"):
        write_documents(first, load_config(write_config()))
    assert not (tmp_path / "policy" / "report.html").exists()
    write_documents(second, load_config(write_config(splits={"seed": 5})))


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_command_prints_tables_or_one_json_object(
    make_rows: Make, write_rows: Write, write_config: Write, tmp_path: Path
) -> None:
    write_rows(make_rows())
    config = write_config()
    tables = _invoke("run", config)
    assert tables.exit_code == 0
    for words in ("calibration", "uncertainty", "k = 10", "layers 1; merge: replace", str(tmp_path / "policy")):
        assert words in tables.stdout
    printed = _invoke("run", config, "--json")
    answer = json.loads(printed.stdout)
    assert answer["budget"]["k"] == 10
    sizes = {"train": 240, "calibration": 80, "test": 80, "left_out": 0, "test_left_out": 0}
    none = {"train": 0, "calibration": 0, "test": 0}
    assert answer["split"] == sizes | {"refused": none, "unlabelled": none, "unreadable": none}
    assert answer["probes"] == {"layers": [1], "kinds": ["mean"], "merge": "replace"}
    methods = {cell["method"] for cell in answer["evaluation"]["cells"]}
    assert methods == {"probe", "expert", "random", "uncertainty", "ctd", "oracle"}


def test_the_command_ends_with_one_line_and_a_status(make_rows: Make, write_rows: Write, write_config: Write) -> None:
    write_rows(make_rows())
    infeasible = _invoke("run", write_config(budget={"alpha": 0.001}))
    assert infeasible.exit_code == 3
    assert infeasible.stderr.count("\n") == 1
    assert infeasible.stdout == ""
    mistaken = _invoke("run", write_config(budget={"alpah": 0.1}))
    assert mistaken.exit_code == 2
    assert "budget.alpah: this key is unknown. Did you mean `alpha`?" in mistaken.stderr


def test_the_command_names_the_missing_extra(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("calibrate.pipeline.run", "calibrate.train", "sklearn"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = _invoke("run", write_config())
    assert result.exit_code == 2
    assert "pip install 'ctd-guardrail[calibrate]'" in result.stderr
