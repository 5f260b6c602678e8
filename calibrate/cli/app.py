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
from ctd_guardrail.cli.help_text import add_commands

__all__ = ["app"]

app: Final = typer.Typer(
    name="ctd-calibrate",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals contain users' texts
    help="Calibrate policies for ctd-guardrail.\n\nTry the demonstration first: [bold]ctd-calibrate demo[/bold]. "
    "Then calibrate on your own data: [bold]ctd-calibrate run CALIBRATE.yml[/bold]",
)
add_commands(app, demo, run, evaluate, threshold, recalibrate, prompts, schema)
