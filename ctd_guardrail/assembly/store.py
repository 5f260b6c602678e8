"""From the section ``store`` to the server that several processes share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import SecretStr

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared

if TYPE_CHECKING:
    from ctd_guardrail.runtime.redis_server import RedisServer

__all__ = ["address_of", "open_server"]


def address_of(config: CtdConfig) -> str | None:
    """Return the address of the server; None: there is no section ``store``."""
    return None if config.store is None else os.environ.get(config.store.url_env, "").strip()


def open_server(config: CtdConfig, runtime: Runtime) -> RedisServer | None:
    """Return the server, or None if there is no section ``store``. Guards with one address share their connections.

    Args:
        config: The user's section.
        runtime: Holds the server.

    Raises:
        ConfigError: The environment variable of the address is not set, or holds no address.
        DependencyError: The extra ``redis`` is not installed.
    """
    address = address_of(config)
    if config.store is None or address is None:
        return None
    if not address:
        raise ConfigError(
            f"environment variable {config.store.url_env} is not set",
            key=f"{SECTION}.store.url_env",
            hint="Export the address of the server under this name, for example redis://127.0.0.1:6379/0",
        )
    from ctd_guardrail.runtime.redis_server import RedisServer  # noqa: PLC0415  # an extra

    servers: Shared[str, RedisServer] = runtime.shared("stores")
    return servers.get(address, lambda: RedisServer(SecretStr(address), runtime=runtime))
