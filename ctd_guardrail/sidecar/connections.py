"""Bounds the open connections, and closes waiting ones to make room.

A connection either waits for its client or holds a request that is being answered. The slots bound the second kind. The
first kind costs a client nothing, so this module bounds it: each phase has a deadline. At the limit a new connection
replaces the one that has waited longest. If the limit refused new connections instead, a silent client could lock out
health checks and traffic.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from typing import Any, Final
from weakref import WeakValueDictionary

from ctd_guardrail.errors import ConfigError
from ctd_guardrail.sidecar.settings import Limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Closed", "Connection", "ConnectionCounts", "Connections", "Listener", "fit_to_descriptors"]

log = logging.getLogger(__name__)

_RESERVE: Final = 256
"""Descriptors left to the expert, the cap store, files and the event loop."""

_MOST: Final = 4_096
"""Limit where descriptors are plenty: a connection costs up to 64 KiB of buffers, so all of them 256 MiB."""

_CLOSING: Final = 32
"""Connections beyond the limit that may be on their way out."""

_LEAST_RESERVE: Final = 64 + _CLOSING
"""Descriptors that a limit which the operator has set must leave."""

_REPORT_S: Final = 60.0
"""Seconds between two log lines about closed connections."""

_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class Closed(StrEnum):
    """Why the server closed a connection. Values of the label ``reason`` of a metric."""

    EVICTED = "evicted"
    TOO_SLOW = "too_slow"
    REFUSED = "refused"
    MALFORMED = "malformed"


class _Phase(Enum):
    HEAD = auto()  # also before it: TLS handshake, and a connection that has sent nothing
    BODY = auto()
    WORK = auto()
    IDLE = auto()


@dataclass(slots=True)
class ConnectionCounts:
    """What an operator sees of the connections.

    Attributes:
        open: Connections that are open now.
        most: Limit of open connections.
        closed: Connections that the server closed, by reason; each exists at 0 from the start.
    """

    open: int = 0
    most: int = 0
    closed: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(Closed, 0)))


def fit_to_descriptors(limits: Limits) -> Limits:
    """Return the limits with a number of connections that leaves the process descriptors for everything else.

    Fewer requests are in progress than connections are open, so that one can always be closed for the next.

    Raises:
        ConfigError: The limit that was set leaves too few.
    """
    descriptors = _descriptors()
    if limits.connections is not None:
        if descriptors is not None and limits.connections > descriptors - _LEAST_RESERVE:
            raise ConfigError(
                f"{limits.connections} connections leave too few of the {descriptors} file descriptors for the expert",
                key="--max-connections",
                hint=f"Raise the limit of open files (ulimit -n), or give at most {descriptors - _LEAST_RESERVE}",
            )
        return replace(limits, concurrency=max(1, min(limits.concurrency, limits.connections - 1)))
    connections = _connections_for(descriptors)
    concurrency = max(1, min(limits.concurrency, connections * 3 // 4))
    if concurrency < limits.concurrency:
        log.warning(
            "the limit of open files (ulimit -n) leaves %d connections, and %d requests under way in the place of %d",
            connections,
            concurrency,
            limits.concurrency,
        )
    return replace(limits, connections=connections, concurrency=concurrency)


def _connections_for(descriptors: int | None) -> int:
    if descriptors is None:
        return _MOST
    return max(2, min(_MOST, max(descriptors - _RESERVE, descriptors // 2)))


def _descriptors() -> int | None:
    """Return how many descriptors this process may have; None: any number."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Connection(socket.socket):
    """One accepted connection. It holds its descriptor until it is closed.

    Attributes:
        transport: Its transport; None before the server has one, as during a TLS handshake.
        phase: What it waits for.
        deadline: Closes it when the client takes too long.
        is_dropped: Whether it is being closed.
        connections: The connections that it is one of.
    """

    transport: asyncio.Transport | None = None
    phase = _Phase.HEAD
    deadline: asyncio.TimerHandle | None = None
    is_dropped = False
    connections: Connections | None = None

    def close(self) -> None:
        """Give the descriptor back."""
        if self.connections is not None:
            self.connections.forget(self)
        super().close()


class Connections:
    """The connections of one server. All methods belong to its event loop.

    Args:
        limits: Deadline of a request's headers, and the limit of open connections.
        counts: Where they are counted.
        idle_s: Seconds after which the server closes an idle connection.
    """

    def __init__(self, limits: Limits, counts: ConnectionCounts, *, idle_s: float) -> None:
        self._header_s = limits.header_s
        self._idle_s = idle_s
        self._counts = counts
        counts.most = _MOST if limits.connections is None else limits.connections
        self._open: WeakValueDictionary[int, Connection] = WeakValueDictionary()
        self._waiting: dict[Connection, None] = {}  # for their clients; longest first
        self._unreported: Counter[Closed] = Counter()
        self._report: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether descriptors must be given back before another connection is taken."""
        return len(self._open) >= self._counts.most + _CLOSING

    def add(self, connection: Connection) -> bool:
        """Take a connection in; beyond the limit, the one that has waited longest goes.

        Returns:
            Whether there was room. There is none only where all others are being answered.
        """
        connection.connections = self
        self._open[connection.fileno()] = connection
        self._waiting[connection] = None
        self._counts.open = len(self._open)
        self._set_deadline(connection, self._header_s)
        if len(self._open) <= self._counts.most:
            return True
        if next(iter(self._waiting)) is connection:
            self.drop(connection, Closed.REFUSED)
            return False
        return self.evict()

    def evict(self) -> bool:
        """Close the connection that has waited longest for its client; return whether there was one."""
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            self.drop(oldest, Closed.EVICTED)
        return oldest is not None

    def find(self, transport: asyncio.Transport) -> Connection | None:
        """Return the connection of a transport, and register it; None if another listener accepted it."""
        connection = self._open.get(transport.get_extra_info("socket").fileno())
        if connection is not None:
            connection.transport = transport
            if connection.is_dropped:
                transport.abort()
        return connection

    def begins(self, connection: Connection) -> None:
        """Note that the client has sent something: a request's headers are due."""
        if connection.phase is _Phase.IDLE:
            self._enter(connection, _Phase.HEAD, self._header_s)

    def reads(self, connection: Connection) -> None:
        """Note that the headers are there. The body's deadline is the gate's."""
        if connection.phase is not _Phase.BODY:
            self._enter(connection, _Phase.BODY, None)

    def works(self, connection: Connection) -> None:
        """Note that the whole request is there: the client waits for us."""
        self._enter(connection, _Phase.WORK, None)

    def rests(self, connection: Connection) -> None:
        """Note that the request has been answered."""
        # The server closes it earlier, except if the client does not read the answer.
        self._enter(connection, _Phase.IDLE, self._idle_s + self._header_s)

    def _enter(self, connection: Connection, phase: _Phase, deadline_s: float | None) -> None:
        if connection.is_dropped or connection.fileno() < 0:
            return
        connection.phase = phase
        self._set_deadline(connection, deadline_s)
        self._waiting.pop(connection, None)
        if phase is not _Phase.WORK:
            self._waiting[connection] = None

    def forget(self, connection: Connection) -> None:
        """Forget a connection that is being closed."""
        self._set_deadline(connection, None)
        self._waiting.pop(connection, None)
        self._open.pop(connection.fileno(), None)
        self._counts.open = len(self._open)

    def drop(self, connection: Connection, reason: Closed) -> None:
        """Close a connection without waiting for its client."""
        self._set_deadline(connection, None)
        self._waiting.pop(connection, None)
        if connection.is_dropped:
            return
        connection.is_dropped = True
        self.note(reason)
        if connection.transport is not None:
            connection.transport.abort()
            return
        try:
            connection.shutdown(socket.SHUT_RDWR)  # the event loop reads the end, and closes the descriptor
        except OSError:
            log.debug("a connection was closed by its client already")

    def note(self, reason: Closed) -> None:
        """Count a connection that is closed. The log gets one line a minute."""
        self._counts.closed[reason] += 1
        self._unreported[reason] += 1
        if self._report is None:
            self._report = asyncio.get_running_loop().call_later(_REPORT_S, self.report)

    def report(self) -> None:
        """Log what was closed since the last line, if anything."""
        if self._report is not None:
            self._report.cancel()
            self._report = None
        if self._unreported:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(self._unreported.items()))
            log.warning("connections closed: %s; %d of %d are open", told, self._counts.open, self._counts.most)
            self._unreported.clear()

    def _set_deadline(self, connection: Connection, seconds: float | None) -> None:
        if connection.deadline is not None:
            connection.deadline.cancel()
        connection.deadline = (
            None
            if seconds is None
            else asyncio.get_running_loop().call_later(seconds, self.drop, connection, Closed.TOO_SLOW)
        )


class Listener(socket.socket):
    """A listening socket that never takes more connections than may be open.

    The event loop accepts as many connections as wait, a thousand at a time, before it runs anything else. So the limit
    holds here, and not in the protocol: there, the descriptors would be gone.

    Attributes:
        connections: Where accepted connections go.
    """

    connections: Connections

    def accept(self) -> tuple[Connection, Any]:
        """Take the next connection.

        Raises:
            BlockingIOError: None waits, or none can be taken before the event loop has closed others.
        """
        if self.connections.is_full:
            raise BlockingIOError(errno.EAGAIN, "connections have to be closed first")
        try:
            taken, address = super().accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS and self.connections.evict():
                raise BlockingIOError(errno.EAGAIN, "descriptors have to be given back first") from error
            raise
        # Its protocol is read from the descriptor, TCP by name: only then asyncio sets TCP_NODELAY.
        connection = Connection(fileno=taken.detach())
        if not self.connections.add(connection):
            connection.close()
            raise BlockingIOError(errno.EAGAIN, "every connection is being answered")
        return connection, address
