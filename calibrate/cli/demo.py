"""``ctd-calibrate demo``: the whole method on one laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.errors import DependencyError

__all__ = ["demo"]


def demo(
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything that the tour makes.")] = Path(
        "demo-output"
    ),
) -> None:
    r"""Show the whole method on this machine, without a GPU, a key or a download of weights.

    Writes a data set, fine-tunes a small expert, calibrates a policy, and sends messages that none of them has seen
    through NeMo Guardrails. Everything is left in DIR to be edited and run again.

    Takes a few minutes the first time and about one after that. Needs pip install 'ctd-guardrail\[demo]'.
    """
    with exit_on_error():
        try:
            from calibrate.demo.tour import tour  # noqa: PLC0415  # torch and scikit-learn, only where they are used
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"the demonstration needs {error.name}, which is not installed",
                hint="Run: pip install 'ctd-guardrail[demo]'",
            ) from error
        tour(to, console=Console())
