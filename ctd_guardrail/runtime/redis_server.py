"""A Redis or Valkey server that several processes share. Needs the extra ``redis``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from pydantic import SecretStr

from ctd_guardrail.errors import ConfigError, DependencyError, StoreError
from ctd_guardrail.runtime.runtime import Runtime

__all__ = ["RedisServer"]

T = TypeVar("T")

# Requests wait for the server: a healthy one answers in a millisecond, and half a second is an outage.
_TIMEOUT_S: Final = 0.5
# A burst of requests waits for a connection. To open one for each of them would take longer than the questions.
_CONNECTIONS: Final = 32


class RedisServer:
    """Asks a server on the I/O thread. Serves any number of threads and event loops.

    Args:
        url: Address, ``redis://`` or ``rediss://``.
        timeout_s: Seconds that one question may take.
        runtime: Runs the questions; None: the runtime of the process.

    Raises:
        ConfigError: It is not an address of Redis.
        DependencyError: The extra ``redis`` is not installed.
    """

    def __init__(self, url: SecretStr, *, timeout_s: float = _TIMEOUT_S, runtime: Runtime | None = None) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise DependencyError(
                "`store` needs the Redis client, which is not installed",
                hint="Run: pip install 'ctd-guardrail[redis]'",
            ) from error
        try:
            pool = BlockingConnectionPool.from_url(
                url.get_secret_value(),
                max_connections=_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=None,
            )
        except ValueError:
            # The chain is cut: the client's message may quote the address, which may hold a password.
            raise ConfigError(
                "the environment variable does not hold a Redis address",
                key="custom_data.ctd.store.url_env",
                hint="Write redis://HOST:PORT/0 or rediss://...",
            ) from None
        self._client: Any = Redis.from_pool(pool)
        self._timeout_s = timeout_s
        self._io = (runtime or Runtime.default()).io
        self._io.close_with(self, self._client)

    def script(self, text: str) -> Callable[..., Awaitable[Any]]:
        """Return a Lua script as a function of ``keys`` and ``args``. The server runs it in one atomic step."""
        script: Callable[..., Awaitable[Any]] = self._client.register_script(text)
        return script

    async def ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """Return the answer to a question.

        Args:
            question: Calls a method of the client, or a script. It runs on the I/O thread.

        Raises:
            StoreError: The server did not answer in time, or answered with an error.
        """
        return await asyncio.wrap_future(self._io.submit(self._ask(question)))

    def tell(self, telling: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the I/O thread, and do not wait for it. It is dropped if the runtime is closed."""
        with contextlib.suppress(RuntimeError):
            self._io.submit(telling)

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await question(self._client)
        except Exception as error:  # noqa: BLE001  # its message may hold the address
            raise StoreError(
                f"the server of `store` did not answer ({type(error).__name__})", hint="Check that it is up"
            ) from None
