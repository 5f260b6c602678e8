"""The YAML files of a NeMo Guardrails configuration folder.

NeMo silently drops ``rails.config.ctd`` and keeps only one of two ``custom_data`` sections. This module reads the raw
YAML before NeMo does, and reports such mistakes. It does not import NeMo.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.assembly.judge_prompt import with_judge_prompt
from ctd_guardrail.config.section import SECTION, CtdConfig, parse_section
from ctd_guardrail.config.validation import load_yaml, near_miss
from ctd_guardrail.errors import ConfigError

__all__ = [
    "FLOW",
    "UNGUARDED",
    "RailFolder",
    "holds_section",
    "mapping_at",
    "read_folder",
    "refuse_doubles",
    "says_unguarded",
]

FLOW: Final = "ctd check input"

UNGUARDED: Final = "unguarded"
"""The value of ``custom_data.ctd`` that lets a server serve a configuration without the rail."""

_NAME: Final = "ctd"
_HOLDER: Final = "custom_data"
_SNIPPET: Final = "custom_data: {ctd: {policy: ./policy, expert: {...}}}"
# A classifier of NeMo may be called ctd: the sidecar.
_FREE_TO_USE_THE_NAME: Final = ("rails", "config", "hf_classifier")

Files = list[tuple[Path, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class RailFolder:
    """A folder whose section is valid.

    Attributes:
        path: The folder; relative paths of the section start from it.
        file: The file that holds the section.
        config: The section.
        files: All YAML files and their content.
    """

    path: Path
    file: Path
    config: CtdConfig
    files: Files


def read_folder(path: Path) -> RailFolder:
    """Read a configuration folder. No policy and no model is loaded.

    Raises:
        ConfigError: The folder, a file, or the section is missing, misplaced, doubled or malformed.
    """
    if path.is_file():
        raise ConfigError("is a file", file=path, hint="Give its folder: NeMo ignores import_paths of a single file")
    if not path.is_dir():
        raise ConfigError("there is no such folder", file=path, hint="Give the folder that holds config.yml")
    files = [(file, load_yaml(file)) for file in _yaml_files(path) if file.stat().st_size]
    if not files:
        raise ConfigError("there is no YAML file in this folder", file=path, hint="Add a config.yml")

    for file, content in files:
        for place in _misplaced(content, ()):
            problem = "NeMo drops a section in this place in silence"
            raise ConfigError(problem, file=file, key=place, hint=f"Move it to {SECTION}")
    holders = [(file, content) for file, content in files if _HOLDER in content]
    if not any(_NAME in mapping_at(content, (_HOLDER,), file) for file, content in holders):
        raise _missing(path, files, holders)
    refuse_doubles(files, _HOLDER)
    file, content = holders[0]
    section = content[_HOLDER][_NAME]
    if not isinstance(section, Mapping):
        raise ConfigError("is not a mapping", file=file, key=SECTION, hint=f"Write {_SNIPPET}")
    prompts = [prompt for _, content in files for prompt in content.get("prompts") or () if isinstance(prompt, Mapping)]
    config = with_judge_prompt(parse_section(section, file=file), prompts, file=file)
    return RailFolder(path, file, config, files)


def refuse_doubles(files: Files, key: str) -> None:
    """Refuse a key at the top of two files.

    Args:
        files: All YAML files and what stands in them.
        key: The key.

    Raises:
        ConfigError: NeMo would keep only one of them: the one that the file system lists last.
    """
    holders = [file for file, content in files if key in content]
    if len(holders) > 1:
        raise ConfigError(
            f"{key} is also in {', '.join(map(str, holders[1:]))}, but NeMo keeps only one of them",
            file=holders[0],
            key=key,
            hint=f"Move everything under {key} into one file",
        )


def holds_section(path: Path) -> bool:
    """Return whether the YAML of a configuration, a folder or a file, holds the section.

    Raises:
        ConfigError: A file is no YAML mapping.
    """
    return any(section != UNGUARDED for section in _sections(path))


def says_unguarded(path: Path) -> bool:
    """Return whether a configuration declares that it is served without the rail.

    Raises:
        ConfigError: A file is no YAML mapping.
    """
    return UNGUARDED in _sections(path)


def _sections(path: Path) -> list[Any]:
    """Return the value of ``custom_data.ctd`` in each file that has one."""
    files = _yaml_files(path) if path.is_dir() else [path]
    contents = [(file, load_yaml(file)) for file in files if file.is_file() and file.stat().st_size]
    found = [mapping_at(content, (_HOLDER,), file).get(_NAME) for file, content in contents]
    return [section for section in found if section is not None]


def mapping_at(content: Mapping[str, Any], path: Iterable[str], file: Path) -> Mapping[str, Any]:
    """Return the mapping at a path; an empty one if there is none.

    Raises:
        ConfigError: The value at the path is no mapping.
    """
    keys = list(path)
    value: Mapping[str, Any] = content
    for depth, key in enumerate(keys, start=1):
        inner = value.get(key)
        if inner is None:
            return {}
        if not isinstance(inner, Mapping):
            raise ConfigError(
                "is not a mapping", file=file, key=".".join(keys[:depth]), hint=f"Write `{key}:` and keys below it"
            )
        value = inner
    return value


def _yaml_files(folder: Path) -> Iterator[Path]:
    # As NeMo walks: all levels, following links. It treats every path that begins with kb as a knowledge base.
    ignored = _ignored_patterns(folder)
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            file = Path(root) / name
            is_read = not str(file.relative_to(folder)).startswith("kb")
            if name.endswith((".yml", ".yaml")) and is_read and not any(fnmatch(name, p) for p in ignored):
                yield file


def _ignored_patterns(folder: Path) -> list[str]:
    # NeMo takes the nearest file on the way up from the folder.
    places = (place / ".railsignore" for place in (folder, *folder.absolute().parents))
    file = next((place for place in places if place.is_file()), None)
    lines = [] if file is None else file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _misplaced(value: object, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted paths of sections in places that NeMo ignores."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _misplaced(item, (*path, str(number)))
    if isinstance(value, Mapping) and path != _FREE_TO_USE_THE_NAME:
        for key, item in value.items():
            here = (*path, str(key))
            if here == (_HOLDER, _NAME):
                continue
            if key == _NAME:
                yield ".".join(here)
            else:
                yield from _misplaced(item, here)


def _missing(folder: Path, files: Files, holders: Files) -> ConfigError:
    """Return the error for a missing section. It names the place of a probable mistake."""
    problem, file, key, hint = "the section is missing", files[0][0], SECTION, f"Add {_SNIPPET}"
    for found, content in holders:
        close = near_miss(_NAME, content[_HOLDER]) or near_miss("ctd_guardrail", content[_HOLDER])
        if close:
            file, key, hint = found, f"{_HOLDER}.{close}", f"Did you mean `{_NAME}`?"
    for found, content in files if not holders else ():
        close = near_miss(_HOLDER, content)
        if close:
            file, key, hint = found, close, f"Did you mean `{_HOLDER}`?"
    read = {found for found, _ in files}
    for found in sorted(folder.rglob("*.y*ml*")):
        if found not in read and found.is_file() and _NAME in found.read_text(encoding="utf-8", errors="replace"):
            problem, file, hint = "NeMo does not read this file", found, "Give it another name or place"
    return ConfigError(problem, file=file, key=key, hint=hint)
