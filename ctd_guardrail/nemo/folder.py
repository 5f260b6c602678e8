"""A NeMo Guardrails configuration folder as it lies on disk.

NeMo drops ``rails.config.ctd`` in silence, keeps only one of two ``custom_data`` sections, and never calls a rail that
no flow list names. So the raw YAML is read here, before NeMo sees it. This module does not import NeMo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.config import SECTION, CtdConfig, parse_section
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.validation import load_yaml

__all__ = ["FLOW", "IMPORT_PATH", "RailFolder", "read_folder"]

FLOW: Final = "ctd check input"
IMPORT_PATH: Final = "ctd_guardrail/nemo"

_SNIPPET: Final = "custom_data: {ctd: {policy: ./policy, expert: {...}}}"


@dataclass(frozen=True, slots=True)
class RailFolder:
    """A folder in which the rail is configured soundly.

    Attributes:
        path: The folder; relative paths of the section start from it.
        file: The file that holds the section.
        config: The section.
    """

    path: Path
    file: Path
    config: CtdConfig


def read_folder(path: Path) -> RailFolder:
    """Read and check a configuration folder. No policy and no model is loaded.

    Raises:
        ConfigError: The folder, a file, or the section is missing, misplaced, doubled or malformed, or the rail is
            not wired up.
    """
    if path.is_file():
        raise ConfigError("is a file", file=path, hint="Give its folder: NeMo ignores import_paths of a single file")
    if not path.is_dir():
        raise ConfigError("there is no such folder", file=path, hint="Give the folder that holds config.yml")
    files = [(file, load_yaml(file)) for file in _yaml_files(path) if file.stat().st_size]
    if not files:
        raise ConfigError("there is no YAML file in this folder", file=path, hint="Add a config.yml")

    for file, content in files:
        _refuse_misplaced(file, content)
    holders = [(file, content) for file, content in files if "custom_data" in content]
    sections = [file for file, content in holders if "ctd" in _mapping(content, "custom_data", file)]
    if not sections:
        raise ConfigError("the section is missing", file=files[0][0], key=SECTION, hint=f"Add {_SNIPPET}")
    if len(holders) > 1:
        others = ", ".join(str(file) for file, _ in holders[1:])
        raise ConfigError(
            f"custom_data stands in {others} as well, and NeMo keeps only one of them",
            file=holders[0][0],
            key="custom_data",
            hint="Move everything under custom_data into one file",
        )
    file, content = holders[0]
    section = content["custom_data"]["ctd"]
    if not isinstance(section, Mapping):
        raise ConfigError("is not a mapping", file=file, key=SECTION, hint=f"Write {_SNIPPET}")
    config = parse_section(section, file=file)
    _require_wiring(path, [content for _, content in files], file)
    return RailFolder(path, file, config)


def _yaml_files(folder: Path) -> Iterator[Path]:
    # The walk that NeMo does: all levels, links followed; knowledge bases are text, not configuration.
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        if Path(root).relative_to(folder).parts[:1] == ("kb",):
            continue
        for name in sorted(names):
            if name.endswith((".yml", ".yaml")):
                yield Path(root) / name


def _refuse_misplaced(file: Path, content: Mapping[str, Any]) -> None:
    if "ctd" in content:
        key = "ctd"
    elif "ctd" in _mapping(_mapping(content, "rails", file), "config", file):
        key = "rails.config.ctd"
    else:
        return
    raise ConfigError("NeMo drops a section in this place in silence", file=file, key=key, hint=f"Move it to {SECTION}")


def _require_wiring(folder: Path, contents: list[dict[str, Any]], file: Path) -> None:
    imports = [path for content in contents for path in content.get("import_paths") or ()]
    if IMPORT_PATH not in imports and not (folder / "config.py").exists():
        raise ConfigError(
            "the rail is not imported", file=file, key="import_paths", hint=f"Add `import_paths: [{IMPORT_PATH}]`"
        )
    flows = [
        flow
        for content in contents
        for flow in _mapping(_mapping(content, "rails", file), "input", file).get("flows") or ()
    ]
    if FLOW not in flows:
        raise ConfigError(
            f"{FLOW!r} is not among the input flows, so the rail is never called",
            file=file,
            key="rails.input.flows",
            hint=f"Add `rails: {{input: {{flows: [{FLOW}]}}}}`",
        )


def _mapping(content: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("is not a mapping", file=file, key=key)
    return value
