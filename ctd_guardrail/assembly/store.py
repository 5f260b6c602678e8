"""From the section ``store`` to the server that several processes share, and to what they remember there."""

from __future__ import annotations

import hashlib
import os

from pydantic import SecretBytes, SecretStr

from ctd_guardrail.config.section import SECTION, CtdConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.memory import Memory
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared
from ctd_guardrail.runtime.shared_memory import SharedMemory, shared_memories

__all__ = ["address_of", "ask_memory", "open_memory", "open_server"]


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
    servers: Shared[str, RedisServer] = runtime.shared("stores")
    return servers.get(address, lambda: RedisServer(SecretStr(address), runtime=runtime))


def open_memory(config: CtdConfig, key: SecretBytes | None, runtime: Runtime) -> Memory:
    """Return the memory on the server, or that of the process if there is no key.

    Args:
        config: The user's section.
        key: Secret of ``store.key_env``; None: there is none.
        runtime: Holds the memories.

    Raises:
        ConfigError: The environment variable of the address is not set, or holds no address.
        DependencyError: The extra ``redis`` is not installed.
    """
    server = None if key is None else open_server(config, runtime)
    if config.store is None or key is None or server is None:
        return runtime.memory
    name, keep_s = config.store.name, config.store.keep_s
    return shared_memories(runtime).get(
        (address_of(config), name, hashlib.sha256(key.get_secret_value()).hexdigest(), keep_s),
        lambda: SharedMemory(server, name=name, key=key, keep_s=keep_s, local=runtime.memory),
    )


async def ask_memory(memory: Memory) -> bool:
    """Ask the server of a memory for an answer. Return whether there is a server.

    Raises:
        StoreError: It does not answer in time, or with an error.
    """
    if not isinstance(memory, SharedMemory):
        return False
    await memory.ping()
    return True
