"""The folder from which a run that was stopped goes on: activations and expert scores, no text."""

from __future__ import annotations

from pathlib import Path

from ctd_guardrail.errors import ConfigError

__all__ = ["open_cache"]


def open_cache(folder: Path) -> Path:
    """Create the folder where it does not exist, and keep version control out of it.

    Raises:
        ConfigError: It cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Activations can give away what they were computed from.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror})", key="cache", hint="Name another folder"
        ) from error
    return folder
