"""The section `probes`: what is chosen comes out in the policy, and the rail agrees with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from calibrate.cli.app import app
from calibrate.config.file import load_config
from calibrate.pipeline.run import PipelineResult, run
from calibrate.rows.data import read_dataset
from calibrate.train import learner, tokens
from calibrate.train.descent import Schedule
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.policy.store import read_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows

Make = Callable[..., list[dict[str, Any]]]
Write = Callable[..., Path]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent for a minute of patience less."""

    def fast(*arguments: Any, **options: Any) -> Any:
        return tokens.fit_tokens(*arguments, **options, schedule=Schedule(epochs=2, rate=2e-2))

    monkeypatch.setattr(learner, "fit_tokens", fast)


def _base(tiny_bert: Path, layers: list[int]) -> dict[str, Any]:
    return {"model": str(tiny_bert), "layers": layers, "site": "residual", "device": "cpu"}


def _run(config: Path) -> PipelineResult:
    return run(load_config(config), console=Console(quiet=True))


async def _assert_the_rail_agrees(result: PipelineResult, rows: Path) -> None:
    policy = read_policy(result.output)
    conversations = read_dataset([rows]).conversations
    engine = load_base_model(policy.manifest.activations, device="cpu")
    assert engine.fingerprint == policy.manifest.fingerprint
    probes = Probes(policy.manifest.probe, policy.probe)
    online = [over_windows((await engine.run(conversations[row], probes)).rows) for row in result.split.calibration]
    np.testing.assert_allclose(np.sort(np.array(online)[:, 1]), policy.calibration.d, atol=1e-5)


async def test_a_policy_reads_the_layers_that_its_probes_read_and_no_other(
    make_rows: Make, write_rows: Write, write_config: Write, tiny_bert: Path
) -> None:
    rows = write_rows(make_rows(300))
    result = _run(write_config(base=_base(tiny_bert, [1, 2])))
    training = result.policy.manifest.training
    tried = {tuple(each["layers"]): each for each in training["alternatives"]}
    assert set(tried) == {(1,), (2,), (1, 2)}
    assert set(tried[1,]["sets"]) >= {"folds", "padded"}
    best = min(tried, key=lambda layers: tried[layers]["brier"])
    assert result.policy.manifest.activations.layers == tuple(training["layers"]) == best
    await _assert_the_rail_agrees(result, rows)
    narrow = _run(write_config(base=_base(tiny_bert, [1, 2]), probes={"layers": [[1]]}))
    assert narrow.policy.manifest.activations.layers == (1,)
    assert narrow.policy.manifest.training["layers"] == [1]
    assert narrow.policy.manifest.training["alternatives"] == []
    await _assert_the_rail_agrees(narrow, rows)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["ema", "attention"])
async def test_probes_that_read_tokens_are_scored_as_the_rail_scores_them(
    make_rows: Make, write_rows: Write, write_config: Write, kind: str, tiny_bert: Path
) -> None:
    rows = write_rows(make_rows(200))
    base = _base(tiny_bert, [1]) | {"window": 16}
    result = _run(write_config(base=base, probes={"kinds": [kind]}))
    assert result.policy.manifest.probe.components[0].reduction == kind
    await _assert_the_rail_agrees(result, rows)


def test_merge_and_scales_reach_the_policy_and_its_evaluation(
    make_rows: Make, write_rows: Write, write_config: Write
) -> None:
    write_rows(make_rows(300))
    result = _run(write_config(probes={"calibrate": "platt", "merge": "stacking"}))
    manifest = result.policy.manifest
    assert manifest.merge.kind == "stacking"
    assert manifest.merge.expert_scale is not None
    assert result.grid.rows.merge == manifest.merge
    assert {each["kind"] for each in manifest.training["merge"]["alternatives"]} == {"replace", "average", "stacking"}


def test_the_command_shows_what_was_chosen_from(
    make_rows: Make, write_rows: Write, write_config: Write, tiny_bert: Path
) -> None:
    write_rows(make_rows(200))
    printed = CliRunner().invoke(app, ["run", str(write_config(base=_base(tiny_bert, [1, 2])))], catch_exceptions=False)
    for words in ("Probes to choose from", "1+2", "folds", "padded"):
        assert words in printed.stdout


@pytest.mark.parametrize(
    ("probes", "key", "message"),
    [
        ({"layers": [[2]]}, "", "probes.layers names [2], but base.layers has [1]"),
        ({"kinds": ["median"]}, "probes.kinds.0", "'mean', 'ema'"),
        ({"kind": ["mean"]}, "probes.kind", "Did you mean `kinds`"),
        ({"kinds": ["mean", "mean"]}, "probes.kinds", "an entry occurs twice"),
        ({"delegation": "direct"}, "probes.delegation", "this key is unknown"),
    ],
)
def test_a_mistake_is_named_by_its_key(write_config: Write, probes: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(probes=probes))
    assert caught.value.key == key
    assert message in str(caught.value)
