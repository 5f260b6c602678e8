"""``ctd-guardrail schema``: print the JSON Schema of the rail's settings."""

from __future__ import annotations

import json

import typer

from ctd_guardrail.config.schema import config_schema

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of `custom_data.ctd` in a `config.yml`.

    Save it beside config.yml and name it in the first line of that file. Editors then complete, explain and check it:

    # yaml-language-server: $schema=config.schema.json

    [dim]ctd-guardrail schema > config.schema.json[/]
    """
    typer.echo(json.dumps(config_schema(), indent=2))
