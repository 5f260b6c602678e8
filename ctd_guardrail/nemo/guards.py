"""Builds the guard of a NeMo Guardrails configuration. Configurations with the same content share one guard."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctd_guardrail.assembly.folder import holds_section
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.judge_prompt import with_judge_prompt
from ctd_guardrail.assembly.prepared import Prepared, prepare, read_policy_digest
from ctd_guardrail.config.experts import RailExpertConfig
from ctd_guardrail.config.section import SECTION, CtdConfig, parse_section
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.nemo.loading import LoadingGuard
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared

if TYPE_CHECKING:
    from nemoguardrails import RailsConfig

    from ctd_guardrail.experts.rail.expert import RailCollaborators

__all__ = ["LoadableGuard", "config_folder", "guard_for", "refusals_of", "section_of"]

LoadableGuard = Guard | LoadingGuard

_Key = tuple[str, str, str, tuple[str, ...]]

_BOT_MESSAGES: Final = ("refuse to respond", "inform guard unavailable")
_SAID: Final = re.compile(r'bot say "([^"]+)"')


def guard_for(config: RailsConfig, section: CtdConfig, collaborators: RailCollaborators) -> LoadableGuard:
    """Return the guard of a configuration. Apps with the same content share one.

    NeMo builds an app for every model name in requests, and IORails an engine for every synchronous call. A guard
    whose expert is a rail belongs to one app, because it calls the models of that app. A policy that has changed on
    disk makes another guard.

    An error in the configuration is raised at once. Without a running event loop the models are loaded at once too,
    and a mismatch with the policy refuses to start. On a running event loop they are loaded on a thread: inputs wait
    for them, and are blocked if they cannot be loaded.

    Args:
        config: The configuration that NeMo has read.
        section: Its section; see :func:`section_of`.
        collaborators: The host's models and prompts, for an expert of type ``rail``.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    runtime, folder = Runtime.default(), config_folder(config)
    refusals = tuple(chain.from_iterable(refusals_of(config)))

    def start(prepared: Prepared) -> LoadableGuard:
        load = prepared.loader(in_service=True, rail_collaborators=collaborators, refusals=refusals, runtime=runtime)
        return _start(load, section)

    def key(policy: str) -> _Key:
        return place, settings, policy, refusals

    if isinstance(section.expert, RailExpertConfig):
        return start(prepare(section, folder=folder))
    place, settings = os.path.realpath(folder), section.model_dump_json()
    guards: Shared[_Key, LoadableGuard] = runtime.shared("guards")
    # Reads one small file, because IORails asks at every synchronous call.
    guard = guards.find(key(read_policy_digest(section, folder=folder)))
    if guard is None or _has_failed(guard):
        prepared = prepare(section, folder=folder)
        # The key is that of the policy that was read now. It may have been replaced since the look above.
        read = key(prepared.policy.digest)
        if (found := guards.find(read)) is not None and _has_failed(found):
            guards.forget(read)
        guard = guards.get(read, lambda: start(prepared))
    return guard


def _has_failed(guard: LoadableGuard) -> bool:
    return isinstance(guard, LoadingGuard) and guard.has_failed


def _start(load: Callable[[], Guard], section: CtdConfig) -> LoadableGuard:
    """Load at once, or on a thread if an event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return load()
    return LoadingGuard(load, mode=section.mode, principal=section.principal, deadline_s=section.deadline_s)


def config_folder(config: RailsConfig) -> Path:
    """Return the folder that relative paths start from: the folder of the configuration, or the current one.

    A request to NeMo's server may join several configurations. The folder is then that of the one with the section.

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
            hint="Keep it in exactly one of them; `policy` is relative to that folder",
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
    """Return the messages of the app's bot for a refusal, and for a guard that is unavailable."""
    if config.colang_version == "1.0":
        return tuple(tuple(config.bot_messages.get(name, ())) for name in _BOT_MESSAGES)
    # Colang 2.x keeps its messages in flows.
    sources = {getattr(flow, "name", ""): getattr(flow, "source_code", "") for flow in config.flows}
    return tuple(tuple(_SAID.findall(sources.get(f"bot {name}") or "")) for name in _BOT_MESSAGES)
