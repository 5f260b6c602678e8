"""Clients that open connections, send a part of a request or nothing, and wait."""

from __future__ import annotations

import socket
from contextlib import ExitStack

__all__ = ["HELD", "hold"]

# What a client sends, and then nothing more.
HELD = {
    "nothing": b"",
    "half of the headers": b"POST /v1/check HTTP/1.1\r\nHost: x\r\n",
    "half of the body": b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "a request, once": b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body that no route reads": b"GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
}


def address(url: str) -> tuple[str, int]:
    host, _, port = url.partition("://")[2].partition(":")
    return host, int(port)


def hold(stack: ExitStack, url: str, sent: bytes, number: int) -> list[socket.socket]:
    """Open connections that send the same and then wait."""
    held = [stack.enter_context(socket.create_connection(address(url), timeout=30)) for _ in range(number)]
    for connection in held:
        connection.sendall(sent)
    return held
