"""HTTP/1.1 of uvicorn, with what it lacks: a deadline for headers, and a log that clients cannot fill."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ctd_guardrail.sidecar.connections import Closed, Connection, Connections

__all__ = ["Config", "Protocol"]

# In the place of uvicorn's, which has a line at WARNING for each malformed request. Errors still show.
log: Final = logging.getLogger(__name__)
log.setLevel(logging.ERROR)


class Config(uvicorn.Config):
    """Configuration of a server of this protocol.

    Args:
        app: The application.
        connections: The server's connections.
        arguments: Those of uvicorn's configuration.
    """

    def __init__(self, app: ASGIApp, connections: Connections, **arguments: Any) -> None:
        super().__init__(app, http=Protocol, **arguments)
        self.connections = connections


class Protocol(H11Protocol):
    """One connection, which tells :class:`Connections` what it waits for.

    Args:
        config: The server's configuration.
        arguments: Further ones of uvicorn's protocol.
    """

    def __init__(self, config: Config, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.logger = log
        self._connections = config.connections
        self._connection: Connection | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin; the headers' deadline runs since the connection was accepted."""
        super().connection_made(transport)
        self._connection = self._connections.find(transport)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._connection is not None:
            self._connections.begins(self._connection)
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the next request, or go on with the one that has come meanwhile."""
        super().on_response_complete()
        if self._connection is not None and self.cycle.response_complete:
            self._connections.rests(self._connection)
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._connections.note(Closed.MALFORMED)
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has been begun or given
            self.transport.abort()

    def _follow(self) -> None:
        # A cycle of uvicorn is a request whose headers have come, with its answer.
        if self._connection is None or self.cycle is None or self.cycle.response_complete:
            return
        if self.cycle.more_body:
            self._connections.reads(self._connection)
        else:
            self._connections.works(self._connection)
