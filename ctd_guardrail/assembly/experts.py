"""From the settings around an expert to the expert behind them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from ctd_guardrail.config.experts import ExpertConfig, LocalExpertConfig
from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, health_of
from ctd_guardrail.experts.bounded.breaker import CircuitBreaker
from ctd_guardrail.experts.bounded.buckets import BucketStore, MemoryStore
from ctd_guardrail.experts.bounded.bulkhead import Bulkhead
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from ctd_guardrail.experts.protocol import Expert

__all__ = ["bounded", "shared_caps"]


def bounded(expert: Expert, section: ExpertConfig, config: CtdConfig, caps: SpendCaps | None) -> BoundedExpert:
    """Put an expert behind what the configuration bounds it with.

    Args:
        expert: The expert.
        section: Its own section.
        config: The section around it.
        caps: What all experts of the configuration may spend together.
    """
    breaker = None if config.breaker is None else CircuitBreaker(**config.breaker.model_dump(), health=health_of)
    if isinstance(section, LocalExpertConfig):
        # It has a queue of its own, and needs company in it to make batches.
        bulkhead, timeout_s = None, None
    else:
        bulkhead, timeout_s = Bulkhead(section.max_concurrency, section.max_waiting), section.timeout_s
    return BoundedExpert(
        expert,
        is_enabled=config.expert_enabled,
        bulkhead=bulkhead,
        breaker=breaker,
        caps=caps,
        attempts=config.expert_attempts,
        timeout_s=timeout_s,
    )


class _Registry:
    """The caps of this process. A host may build one guard for each model that requests name; they share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caps: weakref.WeakValueDictionary[tuple[str, ...], SpendCaps] = weakref.WeakValueDictionary()

    def get(self, config: CtdConfig, folder: Path) -> SpendCaps:
        parts = {"cap", "cap_store", "principal"}
        key = (str(folder.resolve()), config.model_dump_json(include=parts), *_url(config))
        with self._lock:
            caps = self._caps.get(key)
            if caps is None:
                most = 1 if config.principal is None else config.principal.most
                caps = self._caps[key] = SpendCaps(tuple(_caps(config)), _store(config), max_principals=most)
            return caps


_REGISTRY: Final = _Registry()


def shared_caps(config: CtdConfig, folder: Path) -> SpendCaps | None:
    """Return what the configuration's experts may spend together; the same object as long as somebody holds it.

    Args:
        config: The section.
        folder: The configuration's folder, which tells one configuration from another.

    Raises:
        ConfigError: The environment variable of ``cap_store`` does not hold an address.
        DependencyError: ``cap_store`` needs the extra ``redis``.
    """
    return _REGISTRY.get(config, folder) if config.cap else None


def _caps(config: CtdConfig) -> Iterator[Cap]:
    for cap in config.cap:
        each = cap.per == "principal"
        if cap.calls is not None:
            yield Cap("calls", cap.calls, cap.per_s, cap.calls if cap.burst is None else cap.burst, each)
        if cap.tokens is not None:
            yield Cap("tokens", cap.tokens, cap.per_s, cap.tokens, each)


def _url(config: CtdConfig) -> list[str]:
    return [] if config.cap_store is None else [os.environ.get(config.cap_store.url_env, "").strip()]


def _store(config: CtdConfig) -> BucketStore:
    if config.cap_store is None:
        return MemoryStore()
    from ctd_guardrail.experts.bounded.redis_store import RedisStore  # noqa: PLC0415  # an extra

    (url,) = _url(config)
    if not url:
        raise ConfigError(
            f"environment variable {config.cap_store.url_env} is not set",
            key=f"{SECTION}.cap_store.url_env",
            hint="Export the address of the server under this name, for example redis://127.0.0.1:6379/0",
        )
    return RedisStore(SecretStr(url), name=config.cap_store.name, timeout_s=config.cap_store.timeout_s)
