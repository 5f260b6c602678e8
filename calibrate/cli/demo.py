"""``ctd-calibrate demo``: the whole method on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibrate._extra import needs_extra
from ctd_guardrail.cli.console import exit_on_error

__all__ = ["demo"]


def demo(
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all files of the demonstration.")] = Path(
        "demo-output"
    ),
) -> None:
    r"""Show the whole method on this machine, without a GPU, a key or a download of weights.

    Writes a data set, fine-tunes a small expert, calibrates a policy, and sends unseen messages through NeMo
    Guardrails. All files stay in DIR: edit them and run again.

    Takes a few minutes the first time and about one after that. Needs pip install 'ctd-guardrail\[demo]'.
    """
    with exit_on_error():
        with needs_extra("the demonstration", extra="demo"):
            from calibrate.demo.tour import tour  # noqa: PLC0415  # torch and scikit-learn
        tour(to, console=Console())
