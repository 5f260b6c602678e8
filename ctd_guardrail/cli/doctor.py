"""``ctd-guardrail doctor``: load a configuration, try every part of it, and report what works."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.cli.examine import Finding, Outcome, examine
from ctd_guardrail.cli.wiring import Engine

__all__ = ["EXIT_NOT_READY", "doctor"]

EXIT_NOT_READY: Final = 1

_STYLES: Final = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.ERROR: "bold red", Outcome.INFO: "dim"}


def doctor(
    config: Annotated[Path, typer.Option(metavar="DIR", help="NeMo Guardrails configuration folder.")],
    engine: Annotated[
        Engine, typer.Option(help="NeMo's engine; auto reads NEMO_GUARDRAILS_IORAILS_ENGINE.")
    ] = Engine.AUTO,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for one call of an expert.")] = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Load a configuration, try every part of it, and report what works.

    Checks the YAML and the wiring, the budget, the base model and its fingerprint, and calls each expert once. Then it
    screens inputs with known verdicts: two of its own, and those of `self_test` in the configuration. A wrong verdict
    on one of the latter is an error; it also keeps the sidecar from being ready.

    [dim]ctd-guardrail doctor --config config[/]
    [dim]ctd-guardrail doctor --config config --json > doctor.json[/]

    Exit status: 0 ready; 1 loaded, but a part does not work; 2 an error, with file, key path and hint; 3 a budget that
    the policy cannot certify.
    """
    screen = Console(stderr=as_json)
    with exit_on_error(), screen.status("Loading and trying"):
        findings = asyncio.run(examine(config, engine=engine, deadline_s=deadline))
    ready = not any(finding.outcome is Outcome.ERROR for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ready": ready, "findings": [finding.to_dict() for finding in findings]}, indent=2))
    else:
        _print(screen, findings, ready=ready)
    if not ready:
        raise typer.Exit(EXIT_NOT_READY)


def _print(screen: Console, findings: list[Finding], *, ready: bool) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        style = _STYLES[finding.outcome]
        table.add_row(Text(finding.outcome, style=style), Text(finding.subject), Text(finding.text))
    screen.print(table)
    screen.print(Text("\nready", style="bold green") if ready else Text("\nnot ready", style="bold red"))
