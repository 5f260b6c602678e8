"""From the configuration to the experts and what bounds their use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctd_guardrail.assembly.store import address_of, open_server
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, health_of
from ctd_guardrail.experts.bounded.breaker import CircuitBreaker
from ctd_guardrail.experts.bounded.buckets import BucketStore, MemoryStore
from ctd_guardrail.experts.bounded.redis_store import RedisStore
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.match import check_expert
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared

if TYPE_CHECKING:
    from ctd_guardrail.experts.rail.expert import RailCollaborators

__all__ = ["build_experts"]

# Principals with caps of their own: about 2 MB of memory. All beyond them share one cap.
_PRINCIPALS: Final = 10_000


def build_experts(
    config: CtdConfig,
    manifest: Manifest,
    folder: Path,
    rail_collaborators: RailCollaborators | None,
    runtime: Runtime,
) -> dict[str | None, BoundedExpert]:
    """Return the experts by name; None names the configured one. They share one cap.

    Args:
        config: The user's section.
        manifest: The policy. Every expert must be the one that it was calibrated with.
        folder: Folder that relative paths start from.
        rail_collaborators: The host's models and prompts, for an expert of type ``rail``.
        runtime: Runs calls, and shares models and caps.

    Raises:
        PolicyMismatchError: The policy was calibrated with another expert.
        ConfigError: An expert's section is wrong, or a secret is missing.
        DependencyError: An extra is not installed.
    """
    caps = _shared_caps(config, folder, runtime)
    experts: dict[str | None, BoundedExpert] = {}
    for name, section in config.every_expert.items():
        expert = build_expert(section, rail_collaborators=rail_collaborators, base_dir=folder, runtime=runtime)
        check_expert(manifest, expert.identity)
        experts[name] = expert.with_limits(
            is_enabled=config.expert_enabled, breaker=_breaker(config), caps=caps, attempts=config.expert_attempts
        )
    return experts


def _breaker(config: CtdConfig) -> CircuitBreaker | None:
    return None if config.breaker is None else CircuitBreaker(failures=config.breaker, health=health_of)


def _shared_caps(config: CtdConfig, folder: Path, runtime: Runtime) -> SpendCaps | None:
    """Return the spend caps of a configuration. A host may build one guard for each model name: they share the caps."""
    if not config.cap:
        return None
    parts = {"cap", "store", "principal"}
    key = (str(folder.resolve()), config.model_dump_json(include=parts), address_of(config))

    def make() -> SpendCaps:
        most = 1 if config.principal is None else _PRINCIPALS
        return SpendCaps(tuple(_caps(config)), _store(config, runtime), max_principals=most)

    shared: Shared[tuple[str, str, str | None], SpendCaps] = runtime.shared("spend caps")
    return shared.get(key, make)


def _caps(config: CtdConfig) -> Iterator[Cap]:
    for cap in config.cap:
        each = cap.per == "principal"
        if cap.calls is not None:
            yield Cap("calls", cap.calls, cap.per_s, cap.calls if cap.burst is None else cap.burst, each)
        if cap.tokens is not None:
            yield Cap("tokens", cap.tokens, cap.per_s, cap.tokens, each)


def _store(config: CtdConfig, runtime: Runtime) -> BucketStore:
    server = open_server(config, runtime)
    if config.store is None or server is None:
        return MemoryStore()
    return RedisStore(server, name=config.store.name)
