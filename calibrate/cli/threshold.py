"""``ctd-calibrate threshold``: from a column of delegation values to the threshold, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from calibrate.cli.scores import read_scores
from ctd_guardrail.cli.console import EXIT_INFEASIBLE, exit_on_error
from ctd_guardrail.policy.budget import BudgetUnit, Certificate, Guarantee, Status, certify

__all__ = ["certificate_json", "threshold"]


def threshold(
    scores: Annotated[Path, typer.Option(help="CSV file; its first line names the columns.")],
    alpha: Annotated[
        float,
        typer.Option(
            help="Budget: largest share of the turns that goes to the expert, or mean calls per conversation."
        ),
    ],
    delta: Annotated[float, typer.Option(help="Largest probability that the guarantee fails.")],
    column: Annotated[str, typer.Option(help="Column of the delegation values.")] = "dv",
    conversation: Annotated[
        str | None,
        typer.Option(help="Column that names each turn's conversation. By default each row is one of its own."),
    ] = None,
    unit: Annotated[BudgetUnit, typer.Option(help="What alpha counts: calls per turn or per conversation.")] = (
        BudgetUnit.TURN
    ),
    max_turns: Annotated[
        int | None, typer.Option(help="Largest number of turns of a future conversation; by default that of the file.")
    ] = None,
    guarantee: Annotated[Guarantee, typer.Option(help="What alpha bounds.")] = Guarantee.EXACT,
    horizon: Annotated[int | None, typer.Option(help="For `next`: number of inputs that are covered.")] = None,
) -> None:
    """Print the delegation threshold and its certificate as one JSON object.

    Each score is the delegation value of one turn. The rail sends a turn to the expert if its score is above the
    threshold. Turns of one conversation depend on each other: name the column of the conversations.

    [bold]$ ctd-calibrate threshold --scores scores.csv --alpha 0.1 --delta 0.05[/bold]

    Exit status: 0 certified, 3 infeasible, 2 bad input.
    """
    with exit_on_error():
        certificate = certify(
            read_scores(scores, column, conversation).turns,
            alpha,
            delta,
            unit=unit,
            guarantee=guarantee,
            horizon=horizon,
            max_turns=max_turns,
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
        "unit": certificate.unit.value,
        "conversations": certificate.conversations,
        "turns": certificate.turns,
        "method": certificate.method.value,
        "max_turns": certificate.max_turns,
        "always": certificate.always,
        **({} if certificate.horizon is None else {"horizon": certificate.horizon}),
    }
