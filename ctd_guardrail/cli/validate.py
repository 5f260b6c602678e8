"""``ctd-guardrail validate``: check a configuration without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.assembly.prepared import prepare_folder
from ctd_guardrail.assembly.root import configurations_of, guarded_configurations, has_server_init
from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.cli.memory import describe_memory
from ctd_guardrail.cli.wiring import Engine, check_wiring, notes

__all__ = ["validate"]


def validate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="NeMo Guardrails configuration folder, or a root of several.")
    ],
    engine: Annotated[
        Engine, typer.Option(help="NeMo's engine; auto reads NEMO_GUARDRAILS_IORAILS_ENGINE.")
    ] = Engine.AUTO,
) -> None:
    """Check a configuration without loading a model.

    Finds mistakes that NeMo does not report: a section that is misplaced, mistyped or in two files, a missing or unused
    rail, and settings that the engine cannot serve. Reads the policy and derives the threshold for the configured
    alpha. In a root of several configurations, finds those without the rail.

    [dim]ctd-guardrail validate config[/]
    [dim]ctd-guardrail validate config --engine iorails[/]
    [dim]ctd-guardrail validate configs[/]

    Exit status: 0 sound; 2 an error, with file, key path and hint; 3 a budget that the policy cannot certify.
    """
    console = Console()
    with exit_on_error():
        is_root = bool(configurations_of(folder))
        for path in guarded_configurations(folder) if is_root else [folder]:
            _validate(path, engine, console)
    if is_root and not has_server_init(folder):
        _note(
            console,
            f"{folder / 'config.py'}: with the line `from ctd_guardrail.nemo import init` in it, NeMo's server "
            "refuses configurations without the rail",
        )


def _validate(folder: Path, engine: Engine, console: Console) -> None:
    """Check one configuration, and print its budget and notes."""
    rail = read_folder(folder)
    check_wiring(rail, engine=engine)
    planned = prepare_folder(rail).plan
    certificate = planned.certificate
    console.print(
        f"[green]ok[/] {rail.file}: {planned.statement}, "
        f"with confidence {1 - certificate.delta:.1%} (lambda {planned.rule.threshold:.4g} from {planned.data}, "
        f"{planned.expectation})",
        soft_wrap=True,
    )
    console.print(f"[dim]memory[/] {describe_memory(rail.config)}", soft_wrap=True)
    for said in notes(rail):
        _note(console, f"{rail.file}: {said}")


def _note(console: Console, said: str) -> None:
    console.print(f"[yellow]note[/] {escape(said)}", soft_wrap=True)
