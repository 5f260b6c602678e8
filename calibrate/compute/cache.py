"""Cache folder of activations and expert scores, from which a stopped run continues. It holds no text."""

from __future__ import annotations

from pathlib import Path

from ctd_guardrail.errors import ConfigError

__all__ = ["open_cache"]


def open_cache(folder: Path) -> Path:
    """Create the folder if it does not exist, with a ``.gitignore`` for everything in it.

    Raises:
        ConfigError: It cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Activations can reveal the text that they were computed from.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror})", key="cache", hint="Name another folder"
        ) from error
    return folder
