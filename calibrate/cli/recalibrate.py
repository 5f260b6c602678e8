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
    policy: Annotated[Path, typer.Option(help="Policy folder; the old policy is kept in its folder history/.")],
    scores: Annotated[Path, typer.Option(help="CSV file of traffic; its first line names the columns.")],
    column: Annotated[str, typer.Option(help="Column of the delegation values.")] = "dv",
    alpha: Annotated[float | None, typer.Option(help="Budget; by default the policy's.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="Error probability of all recalibrations together; by default the policy's.")
    ] = None,
) -> None:
    """Certify the budget on new traffic and print the new certificate beside the old one as one JSON object.

    The i-th recalibration of a policy uses 6 delta / (pi^2 i^2), so that all of them together keep delta.

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
