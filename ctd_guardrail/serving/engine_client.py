"""HTTP to a serving engine: one deadline, bounded concurrency, retries of transient faults."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

import httpx
import stamina

from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.errors import ActivationError, ActivationUnavailableError, OverloadedError
from ctd_guardrail.runtime.http_client import authorization, open_client, read_body, read_key
from ctd_guardrail.runtime.io_thread import IoThread

__all__ = ["EngineClient"]

# Readings are idempotent and free, so transient faults are retried within the deadline.
_ATTEMPTS: Final = 3
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 0.5
_MAX_WAITING: Final = 1024
# Requests under way at a time. The engine makes its own batches; more would only wait in its queue.
_CALLS: Final = 64
# Of one client. Its pool looks at all pairs of its connections for each request, which 64 of them would feel.
_CONNECTIONS: Final = 8
_SERVE: Final = "vllm serve OUT --served-model-name NAME --pooler-config.task token_classify --dtype DTYPE"
_HINTS: Final = {
    400: f"The engine refuses the request. Serve the export with: {_SERVE}",
    401: "Check the key in the variable that source.api_key_env names",
    403: "Check the key in the variable that source.api_key_env names",
    404: f"Check source.base_url (without /v1) and source.model. Serve the export with: {_SERVE}",
    422: f"The engine refuses the request. Serve the export with: {_SERVE}",
}


class EngineClient:
    """Calls one engine. Its coroutines run on the loop of an I/O thread.

    Args:
        config: Address, key and deadline.
        io: The thread.

    Raises:
        ConfigError: The environment variable of the key is not set, or does not hold a key.
    """

    def __init__(self, config: VllmSourceConfig, io: IoThread) -> None:
        self._base_url = config.base_url
        self._key = None if config.api_key_env is None else read_key(config.api_key_env, setting="source.api_key_env")
        self._under_way, self._most = 0, _CALLS + _MAX_WAITING
        # A slot is the right to use a client. The last one returned is used first, so that low traffic keeps few
        # connections busy.
        self._slots: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        for start in range(0, _CALLS, _CONNECTIONS):
            client = open_client(keepalive=_CONNECTIONS)
            io.close_with(self, client)
            for _ in range(min(_CONNECTIONS, _CALLS - start)):
                self._slots.put_nowait(client)

    async def call(self, path: str, body: bytes | None = None, *, limit: int, deadline: float) -> tuple[bytes, float]:
        """Return the body of an answer, and the time at which the request got its slot (:func:`time.perf_counter`).

        Args:
            path: Path of the route.
            body: What to post; None: get.
            limit: Bytes of the answer. Of a longer one a single byte more is returned.
            deadline: Time of the running loop, further attempts included.

        Raises:
            OverloadedError: Too many requests are waiting, here or there, or no slot came free before the deadline.
            ActivationUnavailableError: Refused, unreachable, cut off, failing, or no answer before the deadline.
            ActivationError: The engine does not take the request.
        """
        if self._under_way >= self._most:
            raise OverloadedError(f"{_MAX_WAITING} requests are already waiting for the engine", hint="Add replicas")
        client: httpx.AsyncClient | None = None
        self._under_way += 1
        try:
            async with asyncio.timeout_at(deadline):
                client = await self._slots.get()
                started = perf_counter()
                return await self._attempts(client, path, body, limit), started
        except TimeoutError:
            if client is None:
                raise OverloadedError("the engine had no free slot in time", hint="Add replicas") from None
            raise ActivationUnavailableError(
                "the engine did not answer in time", hint="Raise source.timeout_s or add replicas"
            ) from None
        finally:
            self._under_way -= 1
            if client is not None:
                self._slots.put_nowait(client)

    async def _attempts(self, client: httpx.AsyncClient, path: str, body: bytes | None, limit: int) -> bytes:
        async for attempt in stamina.retry_context(
            on=_may_pass,
            attempts=_ATTEMPTS,
            timeout=None,  # the deadline ends them
            wait_initial=_FIRST_WAIT_S,
            wait_max=_LONGEST_WAIT_S,
            wait_jitter=_FIRST_WAIT_S,
        ):
            with attempt:
                return await self._once(client, path, body, limit)
        raise AssertionError  # the last attempt returns or raises

    async def _once(self, client: httpx.AsyncClient, path: str, body: bytes | None, limit: int) -> bytes:
        method = "GET" if body is None else "POST"
        try:
            async with client.stream(
                method, self._base_url + path, content=body, headers=authorization(self._key)
            ) as response:
                if response.status_code == httpx.codes.OK:
                    return await read_body(response, limit=limit)
                # The text of a refusal is not read: it may quote the conversation.
                status = response.status_code
        except Exception as error:  # noqa: BLE001  # httpx lets errors of sockets, TLS and its own state through
            # Only the class of the error: its text may name the address or quote the answer.
            raise ActivationUnavailableError(
                f"the call to the engine failed ({type(error).__name__})",
                hint="Check that source.base_url is reachable from here",
                has_lost_connection=True,
            ) from None
        raise _refusal(status)


def _refusal(status: int) -> ActivationError:
    problem, hint = f"the engine answered with HTTP {status}", _HINTS.get(status, "")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return OverloadedError(problem, hint="Add replicas")
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
        return ActivationUnavailableError(problem, hint=hint)
    return ActivationError(problem, hint=hint)


def _may_pass(error: Exception) -> bool:
    return isinstance(error, ActivationUnavailableError | OverloadedError)
