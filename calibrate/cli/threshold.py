"""``ctd-calibrate threshold``: from a column of delegation values to the threshold, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from calibrate.cli.scores import read_column
from ctd_guardrail.cli.console import EXIT_INFEASIBLE, exit_on_error
from ctd_guardrail.policy.budget import Certificate, Guarantee, Status, certify, sort_scores

__all__ = ["certificate_json", "threshold"]


def threshold(
    scores: Annotated[Path, typer.Option(help="CSV file; its first line names the columns.")],
    alpha: Annotated[float, typer.Option(help="Budget: largest share of the inputs that goes to the expert.")],
    delta: Annotated[float, typer.Option(help="Largest probability that the guarantee fails.")],
    column: Annotated[str, typer.Option(help="Column of the delegation values.")] = "dv",
    guarantee: Annotated[Guarantee, typer.Option(help="What alpha bounds.")] = Guarantee.EXACT,
    horizon: Annotated[int | None, typer.Option(help="For `next`: number of inputs that are covered.")] = None,
) -> None:
    """Print the delegation threshold and its certificate as one JSON object.

    Each score is the delegation value of one input. The rail sends an input to the expert if its score is above the
    threshold.

    [bold]$ ctd-calibrate threshold --scores scores.csv --alpha 0.1 --delta 0.05[/bold]

    Exit status: 0 certified, 3 infeasible, 2 bad input.
    """
    with exit_on_error():
        certificate = certify(
            sort_scores(read_column(scores, column)), alpha, delta, guarantee=guarantee, horizon=horizon
        )
    typer.echo(json.dumps(certificate_json(certificate), allow_nan=False))
    if certificate.status is Status.INFEASIBLE:
        raise typer.Exit(EXIT_INFEASIBLE)


def certificate_json(certificate: Certificate) -> dict[str, Any]:
    """Return a certificate as strict JSON: the threshold is null if alpha cannot be certified."""
    feasible = certificate.status is Status.CERTIFIED
    return {
        "status": certificate.status.value,
        "threshold": certificate.threshold if feasible else None,
        "k": certificate.k,
        "n": certificate.n,
        "alpha": certificate.alpha,
        "delta": certificate.delta,
        "mean_rate": certificate.mean_rate,
        "n_min": certificate.n_min,
        "alpha_min": certificate.alpha_min,
        "guarantee": certificate.guarantee.value,
        **({} if certificate.horizon is None else {"horizon": certificate.horizon}),
    }
