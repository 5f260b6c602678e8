"""``ctd-guardrail schema``: what editors need to help with a ``config.yml``."""

from __future__ import annotations

import json

import typer

from ctd_guardrail.config.schema import config_schema

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of `custom_data.ctd` within a `config.yml`.

    Editors complete, explain and check the file whose first line names it:

    # yaml-language-server: $schema=config.schema.json

    [dim]ctd-guardrail schema > config.schema.json[/]
    """
    typer.echo(json.dumps(config_schema(), indent=2))
