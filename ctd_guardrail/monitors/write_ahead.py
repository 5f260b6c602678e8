"""A log of the updates since the last save, so that a killed process repeats them and no random draw changes."""

from __future__ import annotations

import errno
import json
import logging
import os
import weakref
from pathlib import Path
from typing import Any

__all__ = ["WriteAheadLog"]

log = logging.getLogger(__name__)


class WriteAheadLog:
    """A file of JSON lines. Each line carries the name of the save that it follows.

    A line is handed to the operating system before the update that it describes. It survives the end of the process,
    and not a power failure. After a save the lines before it have another name, so they are never repeated.

    Not thread-safe.

    Args:
        file: The file. Its folder exists when lines are appended.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream: int | None = None

    def append(self, save: str, update: list[Any]) -> None:
        """Write one update.

        Raises:
            OSError: The file cannot be written.
        """
        if self._stream is None:
            self._stream = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            # The last guard may go at any time, without a call of `close`.
            self._release = weakref.finalize(self, os.close, self._stream)
        line = json.dumps([save, *update], allow_nan=False).encode() + b"\n"
        before = os.fstat(self._stream).st_size
        if os.write(self._stream, line) != len(line):
            # The next line would be glued to the half one, and reading stops there.
            os.truncate(self._stream, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def clear(self) -> None:
        """Remove all lines.

        Raises:
            OSError: The file cannot be written.
        """
        if self._stream is not None:
            os.truncate(self._stream, 0)
        elif self._file.exists():
            os.truncate(self._file, 0)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._release()
            self._stream = None

    def read(self, save: str) -> list[list[Any]]:
        """Return the updates that follow a save, up to the first line that is not whole.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return []
        updates = []
        # A process that is killed leaves at most the beginning of a line, without its end.
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                name, *update = json.loads(line)
            except (ValueError, TypeError):
                log.error("%s: line %d is damaged: it and the lines after it are left out", self._file, number)  # noqa: TRY400
                break
            if name == save:
                updates.append(update)
        return updates
