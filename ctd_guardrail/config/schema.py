"""JSON Schemas of the configuration files, for editors: completion, explanations and mistakes underlined.

What a key means is said once, in the ``Attributes`` of its model's docstring; the schemas take it from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ctd_guardrail.config.section import SECTION, CtdConfig

__all__ = ["config_schema", "model_schema"]

_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def config_schema() -> dict[str, Any]:
    """Return the schema of a NeMo Guardrails ``config.yml`` as far as it is this package's."""
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
    """Return a model's schema, with the explanations of its docstrings.

    Args:
        model: The model of a configuration file or a section of one.
    """
    schema = model.model_json_schema(schema_generator=_Generator)
    models = {found.__name__: found for found in _reachable(model, set())}
    for name, definition in [(model.__name__, schema), *schema.get("$defs", {}).items()]:
        if name in models:
            _explain(definition, models[name])
    return schema


class _Generator(GenerateJsonSchema):
    """Writes what a file may hold: one value stands for a list of it where the model takes it so."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        return {"anyOf": [inner["items"], inner]} if inner.get("type") == "array" else inner


def _reachable(annotation: Any, seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            yield annotation
            for field in annotation.model_fields.values():
                yield from _reachable(field.annotation, seen)
    else:
        for argument in get_args(annotation):
            yield from _reachable(argument, seen)


def _explain(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the first lines of a docstring over the model, and its attributes over the fields."""
    definition["description"] = _plain(cleandoc(model.__doc__ or "").partition("\n\nAttributes:")[0])
    explanations: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        attributes = cleandoc(ancestor.__doc__ or "").partition("\nAttributes:\n")[2]
        explanations |= {name: _plain(text) for name, text in _ATTRIBUTE.findall(attributes)}
    for name, field in definition.get("properties", {}).items():
        field.pop("title", None)
        if name in explanations:
            field["description"] = explanations[name]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("``", "`").strip()
