"""Atomic writes: a reader finds the old file or the new one, even after a crash."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new content, also after a crash.

    The folder is made where it does not exist.

    Args:
        file: Its path.
        content: Bytes, or text to encode in UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # The name holds the process: two processes may write the same file at the same time.
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
