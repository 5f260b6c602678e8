"""JSON Schemas of the configuration files, for editors: completion, explanations and mistakes underlined.

The docstring under a field is its description, in the model, the schema and the tables of the docs.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ctd_guardrail.config.section import SECTION, CtdConfig

__all__ = ["config_schema", "model_schema"]


def config_schema() -> dict[str, Any]:
    """Return the schema of this package's section in a NeMo Guardrails ``config.yml``."""
    schema = model_schema(CtdConfig)
    definitions = schema.pop("$defs")
    for key in reversed(SECTION.split(".")):
        schema = {"type": "object", "properties": {key: schema}}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "config.yml of NeMo Guardrails with ctd-guardrail",
        **schema,
        "$defs": definitions,
    }


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema, with the descriptions of its fields.

    Args:
        model: The model of a configuration file or of a section.
    """
    schema = model.model_json_schema(schema_generator=_Generator)
    for definition in (schema, *schema.get("$defs", {}).values()):
        _tidy(definition)
        for field in definition.get("properties", {}).values():
            field.pop("title", None)
            _tidy(field)
    return schema


class _Generator(GenerateJsonSchema):
    """Writes the schema of a file: one value stands for a list of it if the model accepts that."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        return {"anyOf": [inner["items"], inner]} if inner.get("type") == "array" else inner


def _tidy(definition: dict[str, Any]) -> None:
    """Put a description on one line, in Markdown."""
    if "description" in definition:
        definition["description"] = re.sub(r"\s+", " ", definition["description"]).replace("``", "`").strip()
