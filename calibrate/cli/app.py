"""The command ``ctd-calibrate``."""

from __future__ import annotations

from typing import Final

import typer

from calibrate.cli.demo import demo
from calibrate.cli.evaluate import evaluate
from calibrate.cli.prompts import prompts
from calibrate.cli.recalibrate import recalibrate
from calibrate.cli.run import run
from calibrate.cli.schema import schema
from calibrate.cli.threshold import threshold

__all__ = ["app"]

app: Final = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals contain users' texts
    help="Calibrate policies for ctd-guardrail.\n\nSee it work: [bold]ctd-calibrate demo[/bold]. "
    "Then your own: [bold]ctd-calibrate run CALIBRATE.yml[/bold]",
)
app.command()(demo)
app.command()(run)
app.command()(evaluate)
app.command()(threshold)
app.command()(recalibrate)
app.command()(prompts)
app.command()(schema)
