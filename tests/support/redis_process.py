"""A real Redis or Valkey server on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.waiting import wait_until

__all__ = ["PROGRAMS", "RedisProcess"]

PROGRAMS = [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
"""The servers that are installed here."""


class RedisProcess:
    """A server without files. It keeps its port when it is started again.

    Args:
        folder: Its working folder.
        program: The server's program; None: the first one that is installed.
    """

    def __init__(self, folder: Path, program: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._program = PROGRAMS[0] if program is None else program
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, and wait until it listens. It holds nothing then."""
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([self._program, *where], stdout=subprocess.DEVNULL)  # noqa: S603  # fixed words
        wait_until(self._listens, every_s=0.02)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.wait(10)
