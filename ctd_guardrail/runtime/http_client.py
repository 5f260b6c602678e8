"""The HTTP client of experts and serving engines, and its key."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl

import httpx
from pydantic import SecretStr

from ctd_guardrail.errors import ConfigError

__all__ = ["authorization", "open_client", "read_body", "read_key"]


def open_client(*, keepalive: int) -> httpx.AsyncClient:
    """Return a client for the loop of an :class:`~ctd_guardrail.runtime.io_thread.IoThread`.

    It ignores proxies and ``.netrc`` of the environment: only the configuration decides where conversations and keys
    go. Single steps have no time limit: the caller has one deadline for the whole call.

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


def read_key(variable: str, *, setting: str) -> SecretStr:
    """Return the key that an environment variable holds.

    Args:
        variable: Its name.
        setting: Dotted path of the setting that names it.

    Raises:
        ConfigError: It is not set, or does not hold a key.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {variable} is not set",
            key=setting,
            hint="Export the key under this name, or leave api_key_env out if no key is needed",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"environment variable {variable} does not hold a key", key=setting)
    return SecretStr(key)


def authorization(key: SecretStr | None) -> dict[str, str]:
    """Return the headers that carry a key."""
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}


async def read_body(response: httpx.Response, *, limit: int, may_be_cut: bool = False) -> bytes:
    """Return the body of a response. Of a longer one than the limit, a single byte more is returned.

    Args:
        response: A streamed response.
        limit: Bytes to read. A hostile server cannot fill the memory.
        may_be_cut: Whether a connection that breaks ends the body. Otherwise it is an error.

    Raises:
        httpx.HTTPError: The connection broke.
    """
    body = bytearray()
    with contextlib.suppress(httpx.HTTPError) if may_be_cut else contextlib.nullcontext():
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                break
    return bytes(body[: limit + 1])


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return the TLS context that all clients share, because it takes a while to load.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` add private certificate authorities.
    """
    return httpx.create_ssl_context()
