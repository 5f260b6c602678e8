"""The public surface of ``calibrate``, for mypy --strict: a change of a name or a type here breaks users."""

from collections.abc import Callable
from pathlib import Path
from typing import assert_type

from rich.console import Console

import calibrate
from calibrate import study, train_probes
from calibrate.evaluate.figures import Figure
from calibrate.evaluate.grid import Grid
from calibrate.evaluate.study import Study
from calibrate.evaluate.table import Table
from calibrate.pipeline.run import PipelineResult
from calibrate.pipeline.study import PolicyStudy
from calibrate.train import TrainedProbes
from ctd_guardrail.policy.budget import Certificate
from ctd_guardrail.policy.store import Policy


def calibrates() -> None:
    result = calibrate.calibrate("CALIBRATE.yml")
    calibrate.calibrate(Path("CALIBRATE.yml"), ask_refused_again=True, console=Console())
    assert_type(result, PipelineResult)
    assert_type(result.output, Path)
    assert_type(result.policy, Policy)
    assert_type(result.certificate, Certificate)
    assert_type(result.grid, Grid)
    assert_type(result.grid.cell("ctd", 0.2).figures["auroc"], Figure)
    assert_type(result.grid.cell("ctd", 0.2).figures["auroc"].error, float)


def studies() -> None:
    result = study("policy", ["prompts.jsonl"])
    study(
        Path("policy"),
        [Path("prompts.jsonl")],
        to="evaluation",
        expert_column="expert",
        expert_config=None,
        cache=".ctd-cache",
        device="cpu",
        ask_refused_again=False,
        show_text=False,
        console=None,
    )
    assert_type(result, PolicyStudy)
    assert_type(result.study, Study)
    assert_type(dict(result.study.tables), dict[str, Table])
    assert_type(result.study.tables["cascade"].to_csv(), str)


def trains(train: Callable[..., TrainedProbes] = train_probes) -> None:
    """``train_probes`` returns both probes, whatever its recipe."""
    assert_type(train(), TrainedProbes)
