"""``ctd-calibrate schema``: print the JSON Schema of ``CALIBRATE.yml``."""

from __future__ import annotations

import json

import typer

from calibrate.config.file import CalibrateConfig
from ctd_guardrail.config.schema import model_schema

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of `CALIBRATE.yml`.

    Save it beside CALIBRATE.yml and name it in the first line of that file. Editors then complete, explain
    and check it:

    # yaml-language-server: $schema=calibrate.schema.json

    [dim]ctd-calibrate schema > calibrate.schema.json[/]
    """
    typer.echo(json.dumps(model_schema(CalibrateConfig), indent=2))
