"""``ctd-calibrate recalibrate``: a new budget certificate for a policy, from unlabelled traffic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from calibrate.cli.scores import read_column
from calibrate.cli.threshold import certificate_json
from calibrate.pipeline.recalibrate import recalibrate_policy
from ctd_guardrail.cli.console import EXIT_INFEASIBLE, exit_on_error
from ctd_guardrail.policy.budget import Status

__all__ = ["recalibrate"]


def recalibrate(
    policy: Annotated[Path, typer.Option(help="Policy folder; it is rewritten in place.")],
    scores: Annotated[Path, typer.Option(help="CSV file of scores of new traffic; its first line names the columns.")],
    column: Annotated[str, typer.Option(help="Column of the delegation values.")] = "dv",
    alpha: Annotated[float | None, typer.Option(help="Budget; by default the policy's.")] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Largest probability that any of the recalibrations fails; by default the policy's."),
    ] = None,
) -> None:
    """Replace the policy's calibration scores by those of new traffic.

    The old policy goes to history/ in the policy folder. Prints both certificates, the new and the old one, as one JSON
    object.

    The scores are the delegation values of all inputs, or of a random share. They need no labels. The monitors' file of
    recent scores, scores-KEY.csv, is such a file.

    Each further recalibration spends a smaller part of delta: the i-th one 6 delta / (pi^2 i^2). All of them together
    keep delta.

    [bold]$ ctd-calibrate recalibrate --policy policy --scores traffic.csv[/bold]

    Exit status: 0 certified, 3 infeasible (the policy is unchanged), 2 bad input.
    """
    with exit_on_error():
        result = recalibrate_policy(policy, read_column(scores, column), source=scores, alpha=alpha, delta=delta)
    answer = {
        **certificate_json(result.certificate),
        "look": result.look,
        "delta": result.delta,
        "delta_spent": result.certificate.delta,
        "previous": certificate_json(result.previous),
        "kept": None if result.kept is None else str(result.kept),
    }
    typer.echo(json.dumps(answer, allow_nan=False))
    if result.certificate.status is Status.INFEASIBLE:
        raise typer.Exit(EXIT_INFEASIBLE)
