"""Write the tables of settings into the pages of docs/, from the models.

A table stands between ``<!-- settings: PATH -->`` and ``<!-- end of settings -->``. PATH is ``custom_data.ctd`` or
``CALIBRATE.yml``, followed by the keys on the way to a section; a kind of expert is named by its ``type``. A section
that has no table of its own on any page is listed in the table around it, with dotted keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from calibrate.config.file import CalibrateConfig
from ctd_guardrail.config.schema import model_schema
from ctd_guardrail.config.section import SECTION, CtdConfig

__all__ = ["DOCS", "paths_of", "table", "updated"]

DOCS: Final = Path(__file__).parents[1] / "docs"

_ROOTS: Final[dict[str, type[BaseModel]]] = {SECTION: CtdConfig, "CALIBRATE.yml": CalibrateConfig}
_TABLE: Final = re.compile(r"(<!-- settings: (\S+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)
_PAGE: Final = re.compile(r"docs/([\w-]+\.md)")
_NOUN: Final = re.compile(r"\b(number|path|section|text)\b")
_BOUNDS: Final = {"minimum": "at least", "exclusiveMinimum": "above", "exclusiveMaximum": "below", "maximum": "at most"}


def paths_of(page: str) -> frozenset[str]:
    """Return the paths whose tables a page has."""
    return frozenset(match[2] for match in _TABLE.finditer(page))


def updated(page: str, paths: frozenset[str]) -> str:
    """Return a page with its tables written from the models.

    Args:
        page: Text of the page.
        paths: Paths that have a table on any page.
    """
    return _TABLE.sub(lambda match: f"{match[1]}{table(match[2], paths)}{match[3]}", page)


def table(path: str, paths: frozenset[str] = frozenset()) -> str:
    """Return the table of a section in Markdown.

    Args:
        path: Path of the section.
        paths: Paths that have a table on any page.
    """
    rows = [("key", "values", "default", "meaning"), ("---",) * 4, *_rows(_section(path), path, "", paths)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _section(path: str) -> type[BaseModel]:
    """Return the model at a path. A part that is no key is the ``type`` of the kind."""
    root = next(root for root in _ROOTS if path == root or path.startswith(f"{root}."))
    kinds = [_ROOTS[root]]
    for part in path.removeprefix(root).split(".")[1:]:
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        tagged = [
            kind for kind in kinds if part in get_args(getattr(kind.model_fields.get("type"), "annotation", None))
        ]
        kinds = [model for field in fields for model in _models(field.annotation)] or tagged
    (section,) = kinds
    return section


def _rows(
    section: type[BaseModel], path: str, prefix: str, paths: frozenset[str], required: str = "required"
) -> Iterator[tuple[str, str, str, str]]:
    schema = model_schema(section)
    for name, field in section.model_fields.items():
        only = [each for each in get_args(field.annotation) or (field.annotation,) if each is not type(None)]
        inner = only[0]
        if len(only) == 1 and _is_section(inner) and f"{path}.{name}" not in paths:
            needed = required if field.is_required() else f"required in `{prefix}{name}`"
            yield from _rows(inner, f"{path}.{name}", f"{prefix}{name}.", paths, needed)
            continue
        values = _values(schema["properties"][name], schema.get("$defs", {}))
        if field.default is not None and type(None) in get_args(field.annotation):
            values += " or `null`"
        meaning = _PAGE.sub(r"[\1](\1)", schema["properties"][name]["description"]).replace("|", "\\|")
        yield f"`{prefix}{name}`", values, required if field.is_required() else _default(field), meaning


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if _is_section(annotation):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _values(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the values that a key may have, in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts:
        said = [_values(part, definitions) for part in parts if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(said))
    if schema.get("type") == "array":
        return f"list of {_NOUN.sub(lambda noun: noun[0] + 's', _values(schema['items'], definitions))}"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    return _kind(schema)


def _kind(schema: dict[str, Any]) -> str:
    match schema.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as kind:
            bounds = [f"{word} {_number(schema[bound])}" for bound, word in _BOUNDS.items() if bound in schema]
            return ("whole number" if kind == "integer" else "number") + (f" ({', '.join(bounds)})" if bounds else "")
        case "object":
            if "properties" in schema:
                return "section"
            of_values = str(schema.get("additionalProperties")).endswith("/JsonValue'}")
            return "mapping of names to values" if of_values else "sections by name"
    if schema.get("pattern", "").startswith("^[A-Za-z_]"):
        return "name of a variable"
    return "path" if schema.get("format") == "path" else "text"


def _number(value: float) -> str:
    return f"{float(value):,}".removesuffix(".0")


def _default(field: FieldInfo) -> str:
    value = field.default.value if isinstance(field.default, Enum) else field.default
    if value is None or value == () or isinstance(value, BaseModel) or field.default_factory is not None:
        return ""
    return f"`{value if isinstance(value, str | Path) else json.dumps(value)}`"


def main() -> None:
    """Write the tables of all pages."""
    pages = {file: file.read_text(encoding="utf-8") for file in sorted(DOCS.glob("*.md"))}
    paths = frozenset[str]().union(*map(paths_of, pages.values()))
    for file, page in pages.items():
        file.write_text(updated(page, paths), encoding="utf-8")


if __name__ == "__main__":
    main()
