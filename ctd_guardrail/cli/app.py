"""The command ``ctd-guardrail``: check a configuration, try it, and serve it."""

from __future__ import annotations

from typing import Final

import typer

from ctd_guardrail.cli.check import check
from ctd_guardrail.cli.doctor import doctor
from ctd_guardrail.cli.export import export
from ctd_guardrail.cli.help_text import add_commands, join_lines
from ctd_guardrail.cli.schema import schema
from ctd_guardrail.cli.serve import serve
from ctd_guardrail.cli.validate import validate

__all__ = ["app"]

app: Final = typer.Typer(
    name="ctd-guardrail",
    help=join_lines("""Screen chat inputs within an expert budget.

    A configuration is a NeMo Guardrails folder whose config.yml has the section [bold]custom_data.ctd[/]. Its policy is
    the folder that [bold]ctd-calibrate run[/] wrote.

    [dim]ctd-guardrail validate config[/]
    [dim]ctd-guardrail doctor --config config[/]
    [dim]echo "How do I kill a Python process?" | ctd-guardrail check --config config[/]
    [dim]ctd-guardrail serve --config config[/]
    """),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,  # locals may hold users' texts
)
add_commands(app, validate, check, doctor, serve, export, schema)
