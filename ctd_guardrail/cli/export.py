"""``ctd-guardrail export``: write the checkpoint that a serving engine runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ctd_guardrail.budget import read_policy
from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.serving.record import serve_command

__all__ = ["export"]


def export(
    policy: Annotated[Path, typer.Option(metavar="DIR", help="Folder that ctd-calibrate run wrote.")],
    to: Annotated[Path, typer.Option(metavar="OUT", help="Folder to write. An earlier export in it is replaced.")],
    base_model: Annotated[
        str | None, typer.Option(help="Another place of the policy's base model: id or folder.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="Device that computes the check values, by which the guard recognises the export."),
    ] = "auto",
) -> None:
    """Write the base model of a policy, cut off at its layer and with its probes, for vLLM to serve.

    The export is a sequence classifier with tokenizer and chat template, in the policy's dtype. It holds only the
    layers that the policy reads. Its ctd_export.json holds check values: with them, the guard makes sure at its start
    that an engine serves this export.

    [dim]ctd-guardrail export --policy policy --to served[/]

    It prints the command that serves the export with vLLM. Add to custom_data.ctd in config.yml:

    [dim]source: {type: vllm, base_url: http://127.0.0.1:8000, model: ctd, export: ./served}[/]

    The machine of the guard needs no weights: copy the folder without *.safetensors to it.

    Exit status: 0 written; 2 an error, with file, key path and hint.
    """
    console = Console(stderr=True)
    with exit_on_error():
        read = read_policy(policy)
        with console.status("Loading the base model up to the policy's layer, and writing"):
            from ctd_guardrail.serving.export import export_policy  # noqa: PLC0415  # torch

            record = export_policy(read, to, base_model=base_model, device=device)
    size = sum(file.stat().st_size for file in to.iterdir())
    layer = record.activations.layers[0]
    console.print(f"{to}: {layer} layers, {record.columns} columns a token, {size / 1e6:.1f} MB", soft_wrap=True)
    console.print(
        f"serve it with: {shlex.join(serve_command(record, to, name='ctd'))}", soft_wrap=True, highlight=False
    )
