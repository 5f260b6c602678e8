"""``ctd-guardrail validate``: what is wrong with a configuration, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctd_guardrail.assemble import plan
from ctd_guardrail.console import exit_on_error
from ctd_guardrail.nemo.folder import read_folder

__all__ = ["validate"]


def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="NeMo Guardrails configuration folder.")],
) -> None:
    """Check a configuration without loading a model.

    Finds what NeMo drops in silence: a section in the wrong place, twice, or mistyped, and a rail that no flow
    calls. Reads the policy and derives the threshold for the configured alpha.

    Exit status: 0 sound; 2 an error, with file, key path and hint; 3 a budget that the policy cannot certify.
    """
    with exit_on_error():
        rail = read_folder(folder)
        planned = plan(rail.config, folder=rail.path)
    certificate = planned.certificate
    Console().print(
        f"[green]ok[/] {rail.file}: at most {certificate.alpha:.1%} of the inputs reach the expert, "
        f"with confidence {1 - certificate.delta:.1%} (lambda {planned.rule.threshold:.4g} from {certificate.n} "
        f"calibration rows, {planned.expected_rate:.1%} expected)",
        soft_wrap=True,
    )
