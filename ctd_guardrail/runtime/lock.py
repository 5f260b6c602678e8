"""One writer at a time for a policy folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from ctd_guardrail.errors import ConfigError, PolicyLockedError

__all__ = ["LOCK_FILE", "writing"]

LOCK_FILE: Final = "policy.lock"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the write lock of a policy folder until the block ends. Readers need no lock.

    The operating system releases the lock when the process ends, also after a crash; the file stays. Within one
    thread, blocks may be nested.

    Args:
        folder: Created if it does not exist.

    Raises:
        PolicyLockedError: Another process or thread writes it.
        ConfigError: The folder cannot be written to.
    """
    file = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A link in place of the file is not followed: the folder may come from an untrusted source.
        lock = FileLock(folder.resolve() / LOCK_FILE, is_singleton=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise PolicyLockedError(
            f"{file} is locked: another process writes this policy",
            hint="Wait until it has ended, or stop it; or write to another folder",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror})", hint="Name a folder that this process may write to"
        ) from error
    try:
        yield
    finally:
        lock.release()
