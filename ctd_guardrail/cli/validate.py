"""``ctd-guardrail validate``: what is wrong with a configuration, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctd_guardrail.assemble import plan
from ctd_guardrail.console import exit_on_error
from ctd_guardrail.nemo.folder import read_folder
from ctd_guardrail.nemo.wiring import Engine, check_wiring

__all__ = ["validate"]


def validate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="NeMo Guardrails configuration folder.")],
    engine: Annotated[
        Engine, typer.Option(help="NeMo's engine; auto goes by NEMO_GUARDRAILS_IORAILS_ENGINE.")
    ] = Engine.AUTO,
) -> None:
    """Check a configuration without loading a model.

    Finds what NeMo drops in silence: a section in the wrong place, twice, or mistyped, a rail that is not found from
    here or that no flow calls, and what an engine cannot do. Reads the policy and derives the threshold for the
    configured alpha.

    [dim]ctd-guardrail validate config[/]
    [dim]ctd-guardrail validate config --engine iorails[/]

    Exit status: 0 sound; 2 an error, with file, key path and hint; 3 a budget that the policy cannot certify.
    """
    with exit_on_error():
        rail = read_folder(folder)
        check_wiring(rail, engine=engine)
        planned = plan(rail.config, folder=rail.path)
    certificate = planned.certificate
    Console().print(
        f"[green]ok[/] {rail.file}: at most {planned.alpha:.1%} of the inputs reach the expert, "
        f"with confidence {1 - certificate.delta:.1%} (lambda {planned.rule.threshold:.4g} from {certificate.n} "
        f"calibration rows, {planned.expected_rate:.1%} expected)",
        soft_wrap=True,
    )
