"""Files of a policy folder: strict readers, and a writer that leaves the old policy or the new one.

A policy may come from a registry, a shared disk or a download. So a file is read only if it is a regular file of the
folder with a plausible size, and JSON must have one meaning.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Any, Final, NoReturn

from ctd_guardrail.errors import PolicyFormatError, PolicyIntegrityError
from ctd_guardrail.runtime.files import write_whole
from ctd_guardrail.runtime.lock import writing

__all__ = [
    "MANIFEST_FILE",
    "TENSORS_FILE",
    "finish_write",
    "parse_json",
    "read_json",
    "read_manifest_file",
    "read_tensors",
    "write_files",
]

MANIFEST_FILE: Final = "policy.json"
TENSORS_FILE: Final = "policy.safetensors"
_NEXT_TENSORS_FILE: Final = "policy.next.safetensors"

# A policy of a million calibration rows and a 16k-wide model is 33 MB, its manifest some kilobytes.
_LARGEST_TENSORS: Final = 1 << 28
_LARGEST_MANIFEST: Final = 1 << 21
# safetensors itself would parse a header of 100 MB.
_LARGEST_HEADER: Final = 1 << 20
_HEADER_SIZE: Final = 8


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        PolicyFormatError: It cannot be read, or is not JSON with each key once and finite numbers.
    """
    return parse_json(read_manifest_file(path), path)


def read_manifest_file(path: Path) -> bytes:
    """Return the content of a manifest.

    Raises:
        PolicyFormatError: It cannot be read, or is too large.
    """
    with _open(path, _LARGEST_MANIFEST) as file:
        return _read_whole(file, path)


def parse_json(raw: bytes, path: Path) -> Any:
    """Return the value of JSON in which each key occurs once and all numbers are finite.

    Args:
        raw: The JSON.
        path: The file that holds it, for error messages.

    Raises:
        PolicyFormatError: It is something else.
    """
    try:
        return json.loads(raw.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, _JsonError) else "it is not JSON"
        raise PolicyFormatError(
            f"{path}: {problem}", hint="Copy the policy again; `ctd-calibrate run` wrote it as UTF-8 JSON"
        ) from None


def read_tensors(folder: Path, *, sha256: str) -> bytes:
    """Return the safetensors file that has this hash, with a header of a policy's size.

    Raises:
        PolicyFormatError: It cannot be read, or its header is too large.
        PolicyIntegrityError: No file has this hash.
    """
    # A killed writer leaves the new tensors under their temporary name.
    for name in (TENSORS_FILE, _NEXT_TENSORS_FILE):
        if name == TENSORS_FILE or (folder / name).is_file():
            blob = _read_hashed(folder / name, sha256)
            if blob is not None:
                return blob
    raise PolicyIntegrityError(
        f"{folder / TENSORS_FILE} is not the file that {MANIFEST_FILE} was written with",
        hint="Copy both files of the policy again",
    )


def write_files(folder: Path, *, manifest: bytes, tensors: bytes) -> None:
    """Write both files so that a reader sees the old policy or the new one, also after a crash.

    Raises:
        PolicyLockedError: Another process writes the folder.
        ConfigError: The folder cannot be written to.
    """
    with writing(folder):
        finish_write(folder)
        # The manifest makes the new policy the one that is read: it names its tensors by their hash, wherever they
        # lie. A process that is killed before that line leaves the old policy, one that is killed after it the new one.
        write_whole(folder / _NEXT_TENSORS_FILE, tensors)
        write_whole(folder / MANIFEST_FILE, manifest)
        finish_write(folder)


def finish_write(folder: Path) -> None:
    """Finish the write of a process that was killed: move the tensors of the policy in force into their place.

    Readers do not need it. Call it within :func:`writing` before you copy or replace the files of a policy.
    """
    following = folder / _NEXT_TENSORS_FILE
    if not following.is_file():
        return
    try:
        in_force = read_json(folder / MANIFEST_FILE)
        with following.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if isinstance(in_force, dict) and in_force.get("tensors_sha256") == digest:
            following.replace(folder / TENSORS_FILE)
    except (OSError, PolicyFormatError):
        return


def _read_hashed(path: Path, sha256: str) -> bytes | None:
    """Return a safetensors file, or None if it has another hash."""
    with _open(path, _LARGEST_TENSORS) as file:
        # Hash it before it is loaded: a file that does not belong to the manifest takes no memory.
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return None
        file.seek(0)
        if int.from_bytes(file.read(_HEADER_SIZE), "little") > _LARGEST_HEADER:
            raise PolicyFormatError(f"{path} is not a safetensors file with a header of at most 1 MiB")
        file.seek(0)
        return _read_whole(file, path)


def _open(path: Path, largest: int) -> FileIO:
    """Open a regular file of the folder. Links may lead to another place in the folder, as in mounted volumes."""
    try:
        # Check before opening, because opening a pipe or a device may block or act; check the open file again below.
        if not stat.S_ISREG(path.stat().st_mode):
            raise PolicyFormatError(f"{path} is not a regular file")
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise PolicyFormatError(f"{path} leads out of its folder", hint="Copy the file instead of linking it")
        file = FileIO(path)
    except OSError as error:
        raise PolicyFormatError(
            f"{path} cannot be read ({error.strerror})",
            hint="Point `policy` at the folder that `ctd-calibrate run` wrote",
        ) from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
        file.close()
        raise PolicyFormatError(f"{path} is larger than {largest >> 20} MiB", hint="Copy the policy again")
    return file


def _read_whole(file: FileIO, path: Path) -> bytes:
    size = os.fstat(file.fileno()).st_size
    content = file.read(size + 1)
    if len(content) != size:
        raise PolicyFormatError(
            f"{path} changed while it was read", hint="Wait until the process that writes it has ended"
        )
    return content


class _JsonError(ValueError):
    """JSON that is refused. The message holds nothing of the file."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _JsonError("a key occurs twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise _JsonError(f"{name} is no number in JSON")
