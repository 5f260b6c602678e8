"""Read a YAML file into a checked model. Errors name the file, the dotted key path, and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ctd_guardrail.errors import ConfigError

__all__ = ["config_error", "load_yaml", "naming", "near_miss", "validate"]

Model = TypeVar("Model", bound=BaseModel)

_MISSING: Final = object()
# The ratio of difflib from which two names count as one.
_LIKENESS: Final = 0.6


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    It holds plain YAML types only. A key that is written twice is refused: YAML parsers keep the last one in silence.

    Raises:
        ConfigError: The file cannot be read, is not YAML or not UTF-8, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path, hint="Check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8", file=path, hint="Save it as UTF-8") from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeated_keys(node, (), set(), path)
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"is not valid YAML{_position(error)}", file=path, hint="Check the indentation") from error
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise ConfigError("does not hold a mapping of keys to values", file=path, hint="Write `key: value` lines")
    return content


def validate(
    model: type[Model],
    content: Mapping[str, Any],
    *,
    file: Path | None = None,
    prefix: str = "",
    context: Mapping[str, Any] | None = None,
) -> Model:
    """Check a mapping against a pydantic model.

    Args:
        model: The model.
        content: The mapping.
        file: The file that holds it.
        prefix: Dotted path of the mapping inside the file, for example ``custom_data.ctd``.
        context: Passed on to the model's validators.

    Raises:
        ConfigError: A key is unknown, missing, or has a wrong value.
    """
    try:
        return model.model_validate(content, context=None if context is None else dict(context))
    except ValidationError as error:
        # The chain is cut: pydantic's own message quotes the value, which may be a secret.
        raise config_error(error, model, content, file=file, prefix=prefix) from None


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name a file, or the folder of a configuration, in each error about a key that names none.

    Args:
        file: Holds the key.

    Raises:
        ConfigError: As it was raised in the block, with the file.
    """
    try:
        yield
    except ConfigError as error:
        if error.file is not None or not error.key:
            raise
        located = ConfigError(error.problem, file=file, hint=error.hint)
        located.key = error.key
        raise located from error


def config_error(
    error: ValidationError,
    model: type[BaseModel],
    content: Mapping[str, Any],
    *,
    file: Path | None = None,
    prefix: str = "",
) -> ConfigError:
    """Return the first of pydantic's errors as a :class:`ConfigError` that does not quote the value.

    Args:
        error: The error that pydantic raised.
        model: The model that raised it.
        content: The mapping that was checked.
        file: The file it was read from.
        prefix: Dotted path of the mapping inside the file.
    """
    # A mistyped key is both unknown and missing: the unknown one shows the mistake.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    path, parents = _locate(first["loc"], model, content)
    key = ".".join([prefix, *path] if prefix else path)
    name = path[-1] if path else ""
    # The validators of this package raise PydanticCustomError with a hint in its context.
    problem, hint = first["msg"].removeprefix("Value error, "), str(first.get("ctx", {}).get("hint", ""))
    match first["type"]:
        case "extra_forbidden":
            problem, hint = "this key is unknown", _suggest(name, _fields(parents))
        case "missing":
            problem, hint = "this key is missing", f"Add `{name}: ...`"
        case "union_tag_not_found" | "union_tag_invalid":
            tag = first["ctx"]["discriminator"].strip("'")
            key = f"{key}.{tag}"
            problem = "this key is missing" if first["type"] == "union_tag_not_found" else "this value is unknown"
            hint = f"Use one of {', '.join(_tags(_children(parents, name), tag))}"
    return ConfigError(problem, file=file, key=key, hint=hint)


def near_miss(name: str, others: Iterable[object]) -> str | None:
    """Return the one of the other names that is probably another spelling of a name, or None.

    Case does not count, and neither does the choice between a hyphen and an underscore, or a dot and a slash.
    """
    spelled = {_plain(other): other for other in others if isinstance(other, str) and other != name}
    close = difflib.get_close_matches(_plain(name), spelled, n=1, cutoff=_LIKENESS)
    return spelled[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "/")


def _locate(
    location: Sequence[int | str], model: type[BaseModel], content: Mapping[str, Any]
) -> tuple[list[str], list[type[BaseModel]]]:
    """Return the keys on the way to an error as the file has them, and the models that hold the last one.

    Pydantic's locations also name the chosen member of a union, which is no key of the file.
    """
    path: list[str] = []
    models: list[type[BaseModel]] = [model]
    value: Any = content
    for depth, part in enumerate(location):
        is_last = depth == len(location) - 1
        inside = _child(value, part)
        if inside is _MISSING and not (is_last and isinstance(part, str) and isinstance(value, Mapping)):
            # The member of the union that the file names; if it names none, all are possible.
            named = [m for m in models if any(part in get_args(f.annotation) for f in m.model_fields.values())]
            models = named or models
            continue
        path.append(str(part))
        value = inside
        if not is_last and isinstance(part, str):
            models = _children(models, part)
    return path, models


def _child(value: Any, part: int | str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _MISSING)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return _MISSING


def _children(models: Sequence[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    """Return the models that the field may hold."""
    return [found for m in models if name in m.model_fields for found in _models(m.model_fields[name].annotation)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tags(models: Sequence[type[BaseModel]], discriminator: str) -> list[str]:
    return [str(tag) for m in models for tag in get_args(m.model_fields[discriminator].annotation)]


def _fields(models: Sequence[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(f.alias or name for m in models for name, f in m.model_fields.items()))


def _suggest(name: str, known: Sequence[str]) -> str:
    close = near_miss(name, known)
    if close:
        return f"Did you mean `{close}`?"
    return f"Known keys here: {', '.join(sorted(known))}"


def _refuse_repeated_keys(node: yaml.Node | None, path: tuple[str, ...], seen: set[int], file: Path) -> None:
    if node is None or id(node) in seen:  # an alias leads to a node that was checked before
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _refuse_repeated_keys(item, (*path, str(number)), seen, file)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in keys:
                raise ConfigError(
                    f"this key is written twice (line {key_node.start_mark.line + 1})",
                    file=file,
                    key=".".join((*path, key)),
                    hint="Keep one of them",
                )
            keys.add(key)
            _refuse_repeated_keys(value_node, (*path, key), seen, file)


def _position(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
