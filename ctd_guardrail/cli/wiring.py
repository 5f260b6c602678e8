"""Whether NeMo Guardrails finds the rail of a configuration folder, and calls it.

NeMo passes over most mistakes in silence. Mistyped keys are found in the YAML files, because NeMo drops them. NeMo is
asked for the rest: the import that it resolves, the flows and the section that it keeps.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from ctd_guardrail.assembly.folder import FLOW, RailFolder, mapping_at, refuse_doubles
from ctd_guardrail.config.section import SECTION
from ctd_guardrail.config.validation import near_miss
from ctd_guardrail.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from nemoguardrails import RailsConfig

__all__ = ["IMPORT_PATH", "Engine", "check_wiring", "notes"]

IMPORT_PATH: Final = "ctd_guardrail/nemo"

_HERE: Final = Path(__file__).parents[1] / "nemo"
_VERSIONS: Final = ("1.0", "2.x")
_CALL_LINE: Final = re.compile(rf"^\s+(?:await\s+|activate\s+)?{FLOW}\s*$", re.MULTILINE)
_IORAILS_VARIABLE: Final = "NEMO_GUARDRAILS_IORAILS_ENGINE"


class Engine(StrEnum):
    """Engine of NeMo that runs the configuration. ``auto`` reads ``NEMO_GUARDRAILS_IORAILS_ENGINE``."""

    AUTO = "auto"
    LLMRAILS = "llmrails"
    IORAILS = "iorails"


def check_wiring(rail: RailFolder, *, engine: Engine = Engine.AUTO) -> None:
    """Refuse a folder if NeMo would not find its rail, or not call it.

    Args:
        rail: The folder.
        engine: The engine that will run it.

    Raises:
        ConfigError: A key, import or flow is missing or mistyped, or does not go with the engine.
    """
    _refuse_mistyped_keys(rail)
    refuse_doubles(rail.files, "rails")
    version = _colang_version(rail)
    if engine is Engine.IORAILS or (engine is Engine.AUTO and os.environ.get(_IORAILS_VARIABLE) in {"1", "true"}):
        _check_iorails(rail, version)
    imports = list(_items(rail, (), "import_paths"))
    listed = list(_items(rail, ("rails", "input"), "flows"))
    config = _as_nemo_reads(rail, imports)
    _require_section(rail, config)
    if version == "2.x":
        _check_colang_2(rail, config)
    else:
        _check_colang_1(rail, config, imports, listed)


def notes(rail: RailFolder) -> list[str]:
    """Return notes on settings that may surprise the operator."""
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
            "the IORails engine passes no variables or headers to a rail, so it cannot tell principals apart",
            file=rail.file,
            key=f"{SECTION}.principal",
            hint="Use LLMRails, or the sidecar",
        )


def _first_flow(file: Path) -> str:
    found = re.search(r"^(?:define\s+\w+|flow)\s.*$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[0] if found else "flow"


def _as_nemo_reads(rail: RailFolder, imports: list[Any]) -> RailsConfig:
    """Return the folder as NeMo reads it.

    Args:
        rail: The folder.
        imports: Entries of ``import_paths`` in its YAML files.

    Raises:
        ConfigError: NeMo does not resolve an import, or refuses the configuration.
        DependencyError: NeMo Guardrails is not installed.
    """
    try:
        from nemoguardrails import RailsConfig  # noqa: PLC0415  # takes seconds
        from nemoguardrails.colang.v2_x.runtime.errors import ColangParsingError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"package {error.name!r} is not installed", hint="Run: pip install nemoguardrails"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            config: RailsConfig = RailsConfig.from_path(str(rail.path))
            return config
    except ValidationError as error:
        # Its own text quotes values, which may be secrets.
        first = error.errors()[0]
        key, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    except (ValueError, ColangParsingError) as error:
        key, problem = "", str(error).partition("\n")[0]
    except Exception as error:  # noqa: BLE001  # NeMo's validators stumble over odd values in many ways
        key, problem = "", type(error).__name__
    if "could not be resolved" in problem:
        _refuse_unresolved(rail, imports, problem)
    raise ConfigError(f"NeMo refuses this configuration: {problem}", file=rail.file, key=key, hint="Correct it first")


def _refuse_unresolved(rail: RailFolder, imports: list[Any], problem: str) -> None:
    """Refuse an import of the rail that NeMo does not resolve; an import of something else is not decided here."""
    close = near_miss(IMPORT_PATH, imports)
    if close and IMPORT_PATH not in imports:
        raise _not_imported(rail, f"Did you mean `{IMPORT_PATH}`?")
    if IMPORT_PATH.replace("/", ".") in problem:
        raise ConfigError(
            f"NeMo does not find {IMPORT_PATH} from here, because this package is installed elsewhere than NeMo",
            file=rail.file if IMPORT_PATH in imports else _first_colang(rail),
            key="import_paths" if IMPORT_PATH in imports else "import",
            hint=f"Set the environment variable COLANGPATH={_HERE.parents[1]}",
        )


def _not_imported(rail: RailFolder, hint: str) -> ConfigError:
    return ConfigError("the rail is not imported", file=rail.file, key="import_paths", hint=hint)


def _require_section(rail: RailFolder, config: RailsConfig) -> None:
    """Refuse a section in whose place NeMo keeps that of an imported folder."""
    written = next(content["custom_data"]["ctd"] for file, content in rail.files if file == rail.file)
    if config.custom_data.get("ctd") != written:
        raise ConfigError(
            "an imported folder has a custom_data of its own, and NeMo keeps only that one",
            file=rail.file,
            key="custom_data",
            hint="Remove custom_data from the imported folder",
        )


def _check_colang_1(rail: RailFolder, config: RailsConfig, imports: list[Any], listed: list[Any]) -> None:
    if IMPORT_PATH in (config.imported_paths or {}):
        _require_this_package(rail.file, "import_paths", config)
    elif not (rail.path / "config.py").exists():
        close = near_miss(IMPORT_PATH, imports)
        raise _not_imported(rail, f"Did you mean `{IMPORT_PATH}`?" if close else f"Add `import_paths: [{IMPORT_PATH}]`")
    if FLOW in config.rails.input.flows:
        return
    problem = f"{FLOW!r} is not among the input flows, so the rail is never called"
    hint = f"Add `rails: {{input: {{flows: [{FLOW}]}}}}`"
    if FLOW in listed:
        problem, hint = "an imported folder has `rails` of its own, and NeMo keeps only those", "Remove them there"
    for other in ("output", "retrieval", "dialog"):
        if FLOW in getattr(getattr(config.rails, other), "flows", ()):
            problem = f"{FLOW!r} stands in rails.{other}.flows, where no input passes"
    if any("ctd" in str(flow).lower() for flow in config.rails.input.flows):
        hint = f"Did you mean `{FLOW}`?"
    raise ConfigError(problem, file=rail.file, key="rails.input.flows", hint=hint)


def _check_colang_2(rail: RailFolder, config: RailsConfig) -> None:
    place = _first_colang(rail)
    if IMPORT_PATH not in (config.imported_paths or {}):
        hint = f"Add `import {IMPORT_PATH.replace('/', '.')}` at the top"
        raise ConfigError("the rail is not imported", file=place, key="import", hint=hint)
    _require_this_package(place, "import", config)
    # NeMo has taken the comments out of the source of a flow.
    sources = (getattr(flow, "source_code", None) or "" for flow in config.flows)
    if FLOW not in config.rails.input.flows and not any(_CALL_LINE.search(source) for source in sources):
        raise ConfigError(
            f"no flow calls {FLOW!r}",
            file=place,
            key="flow input rails",
            hint=f"Add `flow input rails $input_text` with the line `  {FLOW}`",
        )


def _first_colang(rail: RailFolder) -> Path:
    return next(iter(sorted(rail.path.rglob("*.co"))), rail.path / "main.co")


def _require_this_package(file: Path, key: str, config: RailsConfig) -> None:
    found = Path((config.imported_paths or {})[IMPORT_PATH]).resolve()
    if found != _HERE.resolve():
        raise ConfigError(
            f"NeMo would take {found} for the rail, which is not this package",
            file=file,
            key=key,
            hint=f"Start it from another folder, or set COLANGPATH={_HERE.parents[1]} and rename that one",
        )


def _items(rail: RailFolder, path: tuple[str, ...], key: str) -> Iterator[Any]:
    """Yield the items of a list in all YAML files. NeMo would take the letters of a text for items."""
    for file, content in rail.files:
        items = mapping_at(content, path, file).get(key)
        if items is not None and not isinstance(items, list):
            raise ConfigError("is not a list", file=file, key=".".join((*path, key)), hint=f"Write `{key}: [...]`")
        yield from items or ()
