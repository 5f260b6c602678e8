"""The HTTP client of experts and serving engines, and its key."""

from __future__ import annotations

import functools
import os
import ssl
import weakref

import httpx
from pydantic import SecretStr

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.io_thread import IO_THREAD

__all__ = ["authorization", "close_with", "open_client", "read_key"]


def open_client(*, keepalive: int) -> httpx.AsyncClient:
    """Return a client for the loop of :data:`IO_THREAD`.

    Proxies and ``.netrc`` from the environment are not used: the configuration alone says where conversations and keys
    go. There are no time limits of single steps: the caller has one deadline for the whole call.

    Args:
        keepalive: Idle connections to keep.
    """
    return httpx.AsyncClient(
        # Uncompressed, so that a limit on the size of an answer holds for what is kept in memory as well.
        headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
        timeout=None,  # noqa: S113  # see above
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=keepalive),
        follow_redirects=False,
        trust_env=False,
        verify=_tls(),
    )


def close_with(owner: object, client: httpx.AsyncClient) -> weakref.finalize[[httpx.AsyncClient], object]:
    """Close a client when its owner goes: hosts drop guards without closing them."""
    finalizer = weakref.finalize(owner, _close, client)
    finalizer.atexit = False
    return finalizer


def read_key(variable: str, *, setting: str) -> SecretStr:
    """Return the key that an environment variable holds.

    Args:
        variable: Its name.
        setting: Dotted path of the key of the configuration that names it.

    Raises:
        ConfigError: It is not set, or does not hold a key.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {variable} is not set",
            key=setting,
            hint="Export the key under this name, or leave api_key_env out where no key is needed",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"environment variable {variable} does not hold a key", key=setting)
    return SecretStr(key)


def authorization(key: SecretStr | None) -> dict[str, str]:
    """Return the headers that carry a key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return the one TLS context of all clients: it takes a while to load.

    Private certificate authorities are found by ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    """
    return httpx.create_ssl_context()


def _close(client: httpx.AsyncClient) -> None:
    # What still holds a client when the interpreter ends lets go of it after the loop.
    if not IO_THREAD.has_ended:
        IO_THREAD.submit(client.aclose())
