"""The command ``ctd-calibrate``."""

from __future__ import annotations

from typing import Final

import typer

from calibrate.cli.recalibrate import recalibrate
from calibrate.cli.threshold import threshold

__all__ = ["app"]

app: Final = typer.Typer(no_args_is_help=True, add_completion=False, help="Calibrate policies for ctd-guardrail.")
app.command()(threshold)
app.command()(recalibrate)
