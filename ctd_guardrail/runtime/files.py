"""Files that are there whole or not at all, whenever the process dies."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ctd_guardrail.errors import DataError
from ctd_guardrail.monitors.state import State

__all__ = ["read_state", "write_state", "write_whole"]


def write_whole(file: Path, text: str) -> None:
    """Write a file so that a reader, also after a crash, finds the old text or the new one and nothing between.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_state(file: Path, state: State) -> None:
    """Write a monitor's state; see :func:`write_whole`."""
    write_whole(file, json.dumps(state, allow_nan=False))


def read_state(file: Path) -> State | None:
    """Return a monitor's state, None where there is no file.

    Raises:
        DataError: The file is not a state.
        OSError: It cannot be read.
    """
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError("is not JSON", file=file, hint="Remove it: the monitors then begin anew") from error
    if not isinstance(state, dict):
        raise DataError("is not a JSON object", file=file, hint="Remove it: the monitors then begin anew")
    return state
