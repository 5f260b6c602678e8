"""Servers that tests start as users do: processes of their own, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tests.support.waiting import wait_until

__all__ = ["ROOT", "Servers"]

ROOT: Final = Path(__file__).parents[3]
_STARTUP_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Server:
    address: str
    health: str
    process: subprocess.Popen[bytes]


@dataclass
class Servers:
    """Processes that end with the tests.

    Attributes:
        folder: For their logs.
    """

    folder: Path
    _servers: dict[str, _Server] = field(default_factory=dict)

    def start(self, name: str, arguments: Sequence[str], *, health: str, **environment: str) -> None:
        """Start a server; it takes seconds to answer, see :meth:`address`.

        Args:
            name: Under which it is found again.
            arguments: Of the Python interpreter; ``{port}`` is filled in.
            health: Path that answers 200 as soon as it serves.
            environment: Added to this process's.
        """
        port = _free_port()
        command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603  # the tests' own words
                command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
            )
        self._servers[name] = _Server(f"http://127.0.0.1:{port}", health, process)

    def address(self, name: str) -> str:
        """Wait until a server answers, and return its address, without a slash at the end."""
        server = self._servers[name]

        def answers_or_has_ended() -> bool:
            return _answers(server.address + server.health) or server.process.poll() is not None

        wait_until(
            answers_or_has_ended,
            within_s=_STARTUP_S,
            every_s=0.05,
            explain=lambda: f"{name} does not answer\n{self._log(name).read_text()[-2000:]}",
        )
        assert server.process.poll() is None, self._log(name).read_text()[-2000:]
        return server.address

    def close(self) -> None:
        """Stop every server."""
        for server in self._servers.values():
            server.process.terminate()
        for server in self._servers.values():
            try:
                server.process.wait(10)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
