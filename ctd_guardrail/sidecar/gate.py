"""Checks before a request is parsed: readiness, token, size, concurrency.

The gate is outside the web framework, so that no exception and no part of a body reaches the log of the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import uuid
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from ctd_guardrail.observability import request
from ctd_guardrail.sidecar.settings import Problem, ServeSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ctd_guardrail.sidecar.service import Service

__all__ = ["METRICS", "REQUEST_ID", "Gate"]

log = logging.getLogger(__name__)

REQUEST_ID: Final = "ctd_request_id"
"""Key of the request's id in the ASGI scope."""

METRICS: Final = "/metrics"
"""Path of the exposition for Prometheus."""

_HEALTH: Final = "/health"
_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_CLOSE: Final = {"Connection": "close"}
_BUFFERED: Final = 1 << 16
"""Bytes of a body that the server reads ahead. They are not counted."""


class Gate:
    """ASGI application in front of the API.

    Args:
        app: The API.
        service: Knows whether the guard is ready.
        settings: Token and limits.
    """

    def __init__(self, app: ASGIApp, service: Service, settings: ServeSettings) -> None:
        self._app = app
        self._service = service
        self._limits = settings.limits
        self._token = None if settings.token is None else _digest(settings.token.get_secret_value().encode())
        self._running = 0
        self._read_bytes = 0  # of all incomplete bodies, beyond the bytes that the server reads ahead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        scope[REQUEST_ID] = request_id
        request.REQUEST_ID.set(request_id)  # for this connection's task alone
        path = scope["path"]
        is_health, is_metrics = path == _HEALTH or path.startswith(f"{_HEALTH}/"), path == METRICS
        answer = _Answer(send, scope, self._service, counts=not (is_health or is_metrics))
        try:
            if is_metrics:
                # Also before the guard is ready: metrics show how long it has been loading.
                self._authorize(headers)
            if is_health or is_metrics:
                await self._app(scope, receive, answer.send)
            else:
                await self._admit(scope, headers, receive, answer)
        except Problem as problem:
            await answer.refuse(problem)
        except Exception as error:  # noqa: BLE001  # its message may quote the request
            log.error("request failed: %s", type(error).__name__)  # noqa: TRY400  # and so may its traceback
            await answer.refuse(Problem(500, "internal_error", "the request could not be served"))

    async def _admit(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, answer: _Answer) -> None:
        self._authorize(headers)
        if not self._service.is_serving:
            raise Problem(503, "not_ready", f"the guard is {self._service.status}", headers={"Retry-After": "1"})
        body = await self._read(headers, receive)
        # After the body has arrived: otherwise slow clients would hold slots.
        if self._running >= self._limits.concurrency:
            raise _overloaded("too many requests are under way")
        self._running += 1
        try:
            await self._run(scope, body, receive, answer)
        finally:
            self._running -= 1

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            return
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(token.strip()), self._token):
            raise Problem(
                401,
                "unauthorized",
                "a valid bearer token is needed",
                headers={"WWW-Authenticate": "Bearer", **_CLOSE},
            )

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes
        too_large = Problem(413, "too_large", f"the body exceeds {limit} bytes", headers=_CLOSE)
        if int(headers.get(b"content-length", b"0")) > limit:  # the server has checked that it is a number
            raise too_large
        body = bytearray()
        counted = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "disconnected", "the body was cut off")
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
                    growth = max(0, len(body) - _BUFFERED) - counted
                    if self._read_bytes + growth > self._limits.concurrency * limit:
                        raise _overloaded("too many long bodies are being sent", **_CLOSE)
                    self._read_bytes, counted = self._read_bytes + growth, counted + growth
        except TimeoutError:
            raise Problem(408, "too_slow", "the body did not arrive in time", headers=_CLOSE) from None
        finally:
            self._read_bytes -= counted

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Let the API answer. If the client disconnects, cancel the work."""
        left = asyncio.ensure_future(receive())
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await asyncio.shield(left)

        work = asyncio.ensure_future(self._app(scope, replay, answer.send))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if answer.has_ended:
                await work
            elif work.done():
                work.result()
        finally:
            left.cancel()
            work.cancel()
            await asyncio.gather(work, left, return_exceptions=True)


class _Answer:
    """Adds the id of the request to the answer, counts refusals, and tracks the progress of the answer.

    While the service drains, it also asks clients to close the connection.
    """

    def __init__(self, send: Send, scope: Scope, service: Service, *, counts: bool) -> None:
        self._send = send
        self._scope = scope
        self._service = service
        self._refused = service.refused if counts else Counter[int]()
        self._has_begun = False
        self.has_ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            if message["status"] >= HTTPStatus.BAD_REQUEST:
                self._refused[message["status"]] += 1
            headers = [*message.get("headers", ()), (b"x-request-id", self._scope[REQUEST_ID].encode())]
            if self._service.is_draining and all(name.lower() != b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        elif not message.get("more_body"):
            self.has_ended = True
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        if self._has_begun:
            return
        body = json.dumps(problem.body(self._scope[REQUEST_ID], path=self._scope["path"])).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _overloaded(message: str, **headers: str) -> Problem:
    return Problem(503, "overloaded", message, headers={"Retry-After": "1", **headers})


def _digest(token: bytes) -> bytes:
    # Of one length, so that the comparison does not reveal the length of the token.
    return hashlib.sha256(token).digest()
