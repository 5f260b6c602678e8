"""A root of several configurations, as NeMo's server reads it: a client may name each subfolder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ctd_guardrail.assembly.folder import UNGUARDED, holds_section, says_unguarded
from ctd_guardrail.config.section import SECTION
from ctd_guardrail.errors import ConfigError

__all__ = ["configurations_of", "guarded_configurations", "has_server_init"]

_CONFIGS: Final = ("config.yml", "config.yaml")
_INIT: Final = re.compile(r"^\s*from\s+ctd_guardrail\.nemo\s+import\s+.*\binit\b", re.MULTILINE)


def configurations_of(folder: Path) -> list[Path]:
    """Return the configurations of a root, by the rule of NeMo's server; none if the folder is a configuration."""
    if not folder.is_dir() or _is_configuration(folder):
        return []
    return [path for path in sorted(folder.iterdir()) if path.name[0] not in "._" and _is_configuration(path)]


def guarded_configurations(root: Path) -> list[Path]:
    """Return the configurations of a root that hold the section.

    Raises:
        ConfigError: A configuration neither holds it nor declares that it is served without the rail.
    """
    guarded: list[Path] = []
    for path in configurations_of(root):
        if holds_section(path):
            guarded.append(path)
        elif not says_unguarded(path):
            raise ConfigError(
                "a client can select this configuration, but it has no rail",
                file=path,
                key=SECTION,
                hint=f"Add the section, or write `custom_data: {{ctd: {UNGUARDED}}}` to serve it without the rail",
            )
    return guarded


def has_server_init(root: Path) -> bool:
    """Return whether the root's ``config.py`` registers the rail with the server, which then refuses others."""
    file = root / "config.py"
    return file.is_file() and _INIT.search(file.read_text(encoding="utf-8", errors="replace")) is not None


def _is_configuration(folder: Path) -> bool:
    return any((place / name).is_file() for place in (folder, folder / "config") for name in _CONFIGS)
