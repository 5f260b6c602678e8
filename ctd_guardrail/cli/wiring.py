"""Whether NeMo Guardrails would find the rail of a configuration folder, and call it.

What is not found or not called is mostly passed over in silence by NeMo. This module does not import NeMo.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from ctd_guardrail.assembly.folder import FLOW, RailFolder, mapping_at, near_miss
from ctd_guardrail.config.section import SECTION
from ctd_guardrail.errors import ConfigError

__all__ = ["IMPORT_PATH", "Engine", "check_wiring", "notes"]

IMPORT_PATH: Final = "ctd_guardrail/nemo"

_HERE: Final = Path(__file__).parents[1] / "nemo"
_VERSIONS: Final = ("1.0", "2.x")
_IMPORT_LINE: Final = re.compile(r"^import\s+ctd_guardrail\.nemo\s*$", re.MULTILINE)
_CALL_LINE: Final = re.compile(rf"^\s+(?:await\s+|activate\s+)?{FLOW}\s*$", re.MULTILINE)
_COMMENT: Final = re.compile(r"#.*$", re.MULTILINE)
_IORAILS_VARIABLE: Final = "NEMO_GUARDRAILS_IORAILS_ENGINE"


class Engine(StrEnum):
    """Which of NeMo's engines will run the configuration; ``auto`` goes by ``NEMO_GUARDRAILS_IORAILS_ENGINE``."""

    AUTO = "auto"
    LLMRAILS = "llmrails"
    IORAILS = "iorails"


def check_wiring(rail: RailFolder, *, engine: Engine = Engine.AUTO) -> None:
    """Refuse a folder whose rail NeMo would not find or not call.

    Args:
        rail: The folder.
        engine: The engine that will run it.

    Raises:
        ConfigError: A key, import or flow is missing or mistyped, or does not go with the engine.
    """
    _refuse_mistyped_keys(rail)
    version = _colang_version(rail)
    if engine is Engine.IORAILS or (engine is Engine.AUTO and os.environ.get(_IORAILS_VARIABLE) in {"1", "true"}):
        _check_iorails(rail, version)
    if version == "2.x":
        _check_colang_2(rail)
    else:
        _check_colang_1(rail)


def notes(rail: RailFolder) -> list[str]:
    """Return what holds in a configuration and may surprise its operator."""
    config, said = rail.config, []
    if config.principal is not None and config.principal.header is None:
        said.append(
            f"{SECTION}.principal: behind NeMo's server, context variables are the client's, so no principal is known "
            "there. Set `header` to the one that your gateway sets"
        )
    if config.client_options == "allow":
        said.append(f"{SECTION}.client_options: a client may reach the main LLM without a verdict")
    if config.system_messages == "trust":
        said.append(f"{SECTION}.system_messages: system messages of a client reach the main LLM without a verdict")
    return said


def _refuse_mistyped_keys(rail: RailFolder) -> None:
    for file, content in rail.files:
        for path, wanted in (
            ((), "custom_data"),
            ((), "import_paths"),
            ((), "rails"),
            ((), "colang_version"),
            (("rails",), "input"),
            (("rails", "input"), "flows"),
        ):
            holder = mapping_at(content, path, file)
            close = near_miss(wanted, [key for key in holder if key not in {"rails", "input", "output", "flows"}])
            if wanted not in holder and close:
                raise ConfigError(
                    "NeMo does not know this key and drops it in silence",
                    file=file,
                    key=".".join((*path, close)),
                    hint=f"Did you mean `{wanted}`?",
                )


def _colang_version(rail: RailFolder) -> str:
    for file, content in rail.files:
        version = content.get("colang_version", "1.0")
        if version not in _VERSIONS:
            raise ConfigError(
                "this is no version of Colang that NeMo runs",
                file=file,
                key="colang_version",
                hint='Write "1.0" or "2.x", in quotes',
            )
        if version != "1.0":
            return str(version)
    return "1.0"


def _check_iorails(rail: RailFolder, version: str) -> None:
    if version != "1.0":
        raise ConfigError(
            "the IORails engine runs no Colang", file=rail.file, key="colang_version", hint="Leave it out, or LLMRails"
        )
    for file in sorted(rail.path.rglob("*.co")):
        raise ConfigError(
            "the IORails engine runs no Colang: NeMo falls back to LLMRails, or refuses",
            file=file,
            key=_first_flow(file),
            hint="Remove the file, or choose --engine llmrails",
        )
    if rail.config.allow_overrides:
        raise ConfigError(
            "the IORails engine sends context messages to the model as well, so overrides have no way in",
            file=rail.file,
            key=f"{SECTION}.allow_overrides",
            hint="Use LLMRails, or the sidecar",
        )
    if rail.config.principal is not None:
        raise ConfigError(
            "the IORails engine hands a rail neither variables nor headers, so all principals would be one",
            file=rail.file,
            key=f"{SECTION}.principal",
            hint="Use LLMRails, or the sidecar",
        )


def _first_flow(file: Path) -> str:
    found = re.search(r"^(?:define\s+\w+|flow)\s.*$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[0] if found else "flow"


def _check_colang_1(rail: RailFolder) -> None:
    if not (rail.path / "config.py").exists():
        _require_import(rail)
    flows = [flow for _, flow in _flows(rail, "input")]
    if FLOW in flows:
        return
    key = "rails.input.flows"
    problem = f"{FLOW!r} is not among the input flows, so the rail is never called"
    hint = f"Add `rails: {{input: {{flows: [{FLOW}]}}}}`"
    for other in ("output", "retrieval", "dialog"):
        if FLOW in [flow for _, flow in _flows(rail, other)]:
            problem = f"{FLOW!r} stands in rails.{other}.flows, where no input passes"
    if any("ctd" in str(flow).lower() for flow in flows):
        hint = f"Did you mean `{FLOW}`?"
    raise ConfigError(problem, file=rail.file, key=key, hint=hint)


def _check_colang_2(rail: RailFolder) -> None:
    sources = {
        file: _COMMENT.sub("", file.read_text(encoding="utf-8", errors="replace"))
        for file in sorted(rail.path.rglob("*.co"))
    }
    place = next(iter(sources), rail.path / "main.co")
    if not any(_IMPORT_LINE.search(source) for source in sources.values()):
        if not _imports(rail):
            raise ConfigError(
                "the rail is not imported",
                file=place,
                key="import",
                hint=f"Add `import {IMPORT_PATH.replace('/', '.')}` at the top",
            )
        _require_import(rail)
    else:
        _require_path(place, "import")
    is_listed = FLOW in [flow for _, flow in _flows(rail, "input")]
    if not is_listed and not any(_CALL_LINE.search(source) for source in sources.values()):
        raise ConfigError(
            f"no flow calls {FLOW!r}",
            file=place,
            key="flow input rails",
            hint=f"Add `flow input rails $input_text` with the line `  {FLOW}`",
        )


def _imports(rail: RailFolder) -> list[tuple[Path, Any]]:
    return list(_lists(rail, (), "import_paths"))


def _flows(rail: RailFolder, kind: str) -> list[tuple[Path, Any]]:
    return list(_lists(rail, ("rails", kind), "flows"))


def _lists(rail: RailFolder, path: tuple[str, ...], key: str) -> Iterator[tuple[Path, Any]]:
    for file, content in rail.files:
        items = mapping_at(content, path, file).get(key)
        if items is None:
            continue
        if not isinstance(items, list):
            raise ConfigError("is not a list", file=file, key=".".join((*path, key)), hint=f"Write `{key}: [...]`")
        for item in items:
            yield file, item


def _require_import(rail: RailFolder) -> None:
    found = _imports(rail)
    if IMPORT_PATH in [path for _, path in found]:
        _require_path(rail.file, "import_paths")
        return
    close = near_miss(IMPORT_PATH, [path for _, path in found])
    raise ConfigError(
        "the rail is not imported",
        file=rail.file,
        key="import_paths",
        hint=f"Did you mean `{IMPORT_PATH}`?" if close else f"Add `import_paths: [{IMPORT_PATH}]`",
    )


def _require_path(file: Path, key: str) -> None:
    """Look where NeMo looks: the current folder, COLANGPATH, and the folder that NeMo is installed in."""
    entries = [entry.strip() for entry in os.environ.get("COLANGPATH", "").split(os.pathsep)]
    host = importlib.util.find_spec("nemoguardrails")
    installed = [] if host is None or host.origin is None else [Path(host.origin).parents[1]]
    places = [Path(), *(Path(entry) for entry in entries if entry), *installed]
    found = next((place / IMPORT_PATH for place in places if (place / IMPORT_PATH).exists()), None)
    root = _HERE.parents[1]
    if found is None:
        raise ConfigError(
            f"NeMo does not find {IMPORT_PATH} from here, because this package is installed elsewhere than NeMo",
            file=file,
            key=key,
            hint=f"Set the environment variable COLANGPATH={root}",
        )
    if found.resolve() != _HERE.resolve():
        raise ConfigError(
            f"NeMo would take {found.resolve()} for the rail, which is not this package",
            file=file,
            key=key,
            hint=f"Start it from another folder, or set COLANGPATH={root} and rename that one",
        )
