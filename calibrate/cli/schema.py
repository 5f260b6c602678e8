"""``ctd-calibrate schema``: the JSON Schema of ``CALIBRATE.yml``, for editors."""

from __future__ import annotations

import json

import typer

from calibrate.config.file import CalibrateConfig
from ctd_guardrail.config.schema import model_schema

__all__ = ["schema"]


def schema() -> None:
    """Print the JSON Schema of `CALIBRATE.yml`.

    Editors complete, explain and check the file whose first line names it:

    # yaml-language-server: $schema=calibrate.schema.json

    [dim]ctd-calibrate schema > calibrate.schema.json[/]
    """
    typer.echo(json.dumps(model_schema(CalibrateConfig), indent=2))
