"""From a NeMo Guardrails configuration to its guard, which configurations of like content share."""

from __future__ import annotations

import asyncio
import hashlib
import re
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctd_guardrail.assembly.assemble import prepare
from ctd_guardrail.assembly.folder import holds_section
from ctd_guardrail.assembly.judge_prompt import with_judge_prompt
from ctd_guardrail.assembly.overrides import Guard
from ctd_guardrail.config.experts import RailExpertConfig
from ctd_guardrail.config.section import SECTION, CtdConfig, parse_section
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.nemo.loading import LoadingGuard
from ctd_guardrail.policy.store import MANIFEST_FILE

if TYPE_CHECKING:
    from nemoguardrails import RailsConfig

    from ctd_guardrail.experts.rail.expert import RailCollaborators

__all__ = ["LoadableGuard", "config_folder", "guard_for", "refusals_of", "section_of"]

LoadableGuard = Guard | LoadingGuard

_Key = tuple[str, str, str, tuple[str, ...]]

_BOT_MESSAGES: Final = ("refuse to respond", "inform guard unavailable")
_SAID: Final = re.compile(r'bot say "([^"]+)"')

# NeMo builds an app for every model that requests name, and IORails an engine for every synchronous call.
_SHARED: Final[weakref.WeakValueDictionary[_Key, LoadableGuard]] = weakref.WeakValueDictionary()


def guard_for(config: RailsConfig, collaborators: RailCollaborators) -> LoadableGuard:
    """Return the guard of a configuration, building it where no app has one of like content.

    It is shared as long as some app holds it. A guard whose expert is a rail belongs to one app: it asks that app's
    models. A policy that has changed on disk makes another guard.

    What is wrong in the configuration is said at once. The models are loaded at once as well, and refuse to start if
    they are not those of the policy; but on a running event loop they are loaded beside it: inputs wait until they
    are there, and are blocked if they cannot be.

    Args:
        config: What NeMo has read.
        collaborators: The host's models and prompts, for an expert of type ``rail``.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    section = section_of(config)
    folder = config_folder(config)
    refusals = tuple(chain.from_iterable(refusals_of(config)))
    if any(isinstance(expert, RailExpertConfig) for expert in (section.expert, *section.experts.values())):
        return _start(prepare(section, folder=folder, rail_collaborators=collaborators, refusals=refusals), section)
    key = (str(folder.resolve()), section.model_dump_json(), _policy_digest(folder / section.policy), refusals)
    guard = _SHARED.get(key)
    if guard is None or (isinstance(guard, LoadingGuard) and guard.has_failed):
        guard = _SHARED[key] = _start(prepare(section, folder=folder, refusals=refusals), section)
    return guard


def _start(load: Callable[[], Guard], section: CtdConfig) -> LoadableGuard:
    """Load at once where nothing else waits, and beside the event loop where one runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return load()
    return LoadingGuard(load, mode=section.mode, principal=section.principal, deadline_s=section.deadline_s)


def config_folder(config: RailsConfig) -> Path:
    """Return the folder that relative paths start from: the configuration's, or the current one.

    A request to NeMo's server may join several configurations. Then it is the one whose YAML holds the section.

    Raises:
        ConfigError: None of several configurations holds the section, or more than one does.
    """
    if not config.config_path:
        return Path.cwd()
    paths = [Path(path.strip()) for path in config.config_path.split(",") if path.strip()]
    holders = paths if len(paths) == 1 else [path for path in paths if holds_section(path)]
    if len(holders) != 1:
        raise ConfigError(
            f"{len(holders)} of the {len(paths)} configurations that a request joins hold the section",
            file=config.config_path,
            key=SECTION,
            hint="Let exactly one of them hold it: its folder is where `policy` is looked for",
        )
    (path,) = holders
    return path if path.is_dir() else path.parent


def section_of(config: RailsConfig) -> CtdConfig:
    """Return the section ``custom_data.ctd`` of a configuration.

    Raises:
        ConfigError: It is missing or malformed.
    """
    section = config.custom_data.get("ctd")
    if section is None:
        raise ConfigError(
            "the section is missing",
            file=config.config_path,
            key=SECTION,
            hint="Add it at the top level of config.yml; `ctd-guardrail validate DIR` finds misplaced sections",
        )
    prompts = [prompt.model_dump() for prompt in config.prompts or ()]
    return with_judge_prompt(parse_section(section), prompts, file=config.config_path)


def refusals_of(config: RailsConfig) -> tuple[tuple[str, ...], ...]:
    """Return what the app's bot says where this rail blocks: where it refuses, and where the guard is unavailable."""
    if config.colang_version == "1.0":
        return tuple(tuple(config.bot_messages.get(name, ())) for name in _BOT_MESSAGES)
    # Colang 2.x keeps its messages in flows.
    sources = {getattr(flow, "name", ""): getattr(flow, "source_code", "") for flow in config.flows}
    return tuple(tuple(_SAID.findall(sources.get(f"bot {name}") or "")) for name in _BOT_MESSAGES)


def _policy_digest(policy: Path) -> str:
    """Return a hash of the policy's manifest, which holds the hash of all else; empty where it cannot be read."""
    try:
        return hashlib.sha256((policy / MANIFEST_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""
