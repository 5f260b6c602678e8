"""``ctd-calibrate recalibrate``: a new budget certificate for a policy, from unlabelled traffic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from calibrate.cli.scores import CONVERSATION, has_column, read_scores
from calibrate.cli.threshold import certificate_json
from calibrate.pipeline.recalibrate import Traffic, recalibrate_policy
from ctd_guardrail.cli.console import EXIT_INFEASIBLE, exit_on_error
from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.budget import Status

__all__ = ["recalibrate"]


def recalibrate(
    policy: Annotated[Path, typer.Option(help="Policy folder; it is rewritten in place.")],
    scores: Annotated[Path, typer.Option(help="CSV file of scores of new traffic; its first line names the columns.")],
    column: Annotated[str, typer.Option(help="Column of the delegation values.")] = "dv",
    conversation: Annotated[
        str | None,
        typer.Option(help=f"Column that names each turn's conversation; by default `{CONVERSATION}`, if there is one."),
    ] = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="Each row is a conversation of its own, and no column names them.")
    ] = False,
    growing: Annotated[
        bool,
        typer.Option("--growing", help="The file may be continued: later recalibrations on it then spend no delta."),
    ] = False,
    drop_risks: Annotated[
        bool, typer.Option("--drop-risks", help="Give up the policy's certificate of performance risks.")
    ] = False,
    with_unread: Annotated[
        bool,
        typer.Option(
            "--with-unread",
            help="The file holds every turn that went to the expert unread, as `expert`, even if there were none.",
        ),
    ] = False,
    max_turns: Annotated[
        int | None,
        typer.Option(help="Largest number of turns of a future conversation; by default the policy's, or the file's."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Budget from now on; by default the policy's.")] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Largest probability that any of the recalibrations fails; by default the policy's."),
    ] = None,
) -> None:
    """Replace the policy's calibration scores by those of new traffic.

    The old policy goes to history/ in the policy folder. Prints both certificates, the new and the old one, as one JSON
    object.

    The scores are the delegation values of all conversations, or of a random share of them. They need no labels. The
    monitors' file of recent scores, scores-KEY.csv, is such a file. `expert` in place of a score is a turn that
    the base model could not read and that went to the expert.

    Each further recalibration spends a smaller part of delta: the i-th one 6 delta / (pi^2 i^2). All of them together
    keep delta. With --growing, a file that begins with the rows of the last recalibration spends nothing more.

    [bold]$ ctd-calibrate recalibrate --policy policy --scores traffic.csv[/bold]

    Exit status: 0 certified, 3 infeasible (the policy is unchanged), 2 bad input.
    """
    with exit_on_error():
        traffic = _read(scores, column, conversation, independent=independent)
        result = recalibrate_policy(
            policy,
            traffic,
            alpha=alpha,
            delta=delta,
            max_turns=max_turns,
            is_growing=growing,
            drops_risks=drop_risks,
            holds_unread=with_unread,
        )
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


def _read(scores: Path, column: str, conversation: str | None, *, independent: bool) -> Traffic:
    """Read the scores with the conversations that the options name."""
    if conversation is None and not independent:
        if has_column(scores, column) and not has_column(scores, CONVERSATION):
            raise DataError(
                "no column names the conversations, and turns of one conversation depend on each other",
                file=scores,
                row=1,
                hint="Name the column with --conversation, or use --independent if no two rows share a conversation",
            )
        conversation = CONVERSATION
    return Traffic(*read_scores(scores, column, None if independent else conversation), scores)
