"""Thirty malicious policy folders, each made from a valid one with knowledge of the format."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load_file, save

from ctd_guardrail.policy.manifest import Manifest

__all__ = ["ARTEFACTS", "CANARY", "edit", "retensor"]

CANARY = "canary"
_MANIFEST, _TENSORS = "policy.json", "policy.safetensors"


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of the manifest and hash it again."""
    path = folder / _MANIFEST
    fields = json.loads(path.read_text()) | changes
    with contextlib.suppress(ValidationError):
        fields["pins_sha256"] = Manifest.model_validate(fields).hash_pins()
    path.write_text(json.dumps(fields))


def retensor(folder: Path, **changes: Any) -> None:
    """Replace tensors (`__` stands for a dot) or leave them out, and give the manifest their hash."""
    tensors = load_file(folder / _TENSORS) | {name.replace("__", "."): value for name, value in changes.items()}
    _replace(folder, save({name: value for name, value in tensors.items() if value is not None}))


def _replace(folder: Path, blob: bytes) -> None:
    (folder / _TENSORS).write_bytes(blob)
    edit(folder, tensors_sha256=hashlib.sha256(blob).hexdigest())


def _pickle(folder: Path) -> bytes:
    """Return a pickle that leaves the canary when it is loaded."""
    return f"cos\nsystem\n(S'touch {folder.parent / CANARY}'\ntR.".encode()


def _torch_file(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(folder))
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def _numpy_file(folder: Path) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + _pickle(folder)


def _zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0", "w") as entry:
        for _ in range(128):
            entry.write(bytes(1 << 20))
    return buffer.getvalue()


def _safetensors(header: bytes, data: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def _entry(name: str, shape: list[int], start: int, end: int) -> str:
    return json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}})[1:-1]


def _tensors(*entries: str, data: int) -> bytes:
    return _safetensors(("{" + ",".join(entries) + "}").encode(), bytes(data))


def _link(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return link


def _outside(folder: Path) -> None:
    moved = folder.parent / f"{folder.name}.elsewhere"
    (folder / _TENSORS).rename(moved)
    (folder / _TENSORS).symlink_to(moved)


def _pipe(folder: Path) -> None:
    (folder / _MANIFEST).unlink()
    os.mkfifo(folder / _MANIFEST)


def _directory(folder: Path) -> None:
    (folder / _TENSORS).unlink()
    (folder / _TENSORS).mkdir()


def _sparse(name: str, size: int) -> Callable[[Path], None]:
    def grow(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return grow


def _manifest(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / _MANIFEST).write_bytes(content) and None


def _twice(folder: Path) -> None:
    path = folder / _MANIFEST
    path.write_text(path.read_text().rstrip().removesuffix("}").rstrip() + ', "decision_threshold": 0.99}')


def _field(name: str, raw: str) -> Callable[[Path], None]:
    """Give a field a value that Python's writer of JSON would not write."""

    def write(folder: Path) -> None:
        edit(folder, **{name: "THE VALUE"})
        path = folder / _MANIFEST
        path.write_text(path.read_text().replace('"THE VALUE"', raw))

    return write


def _relayer(folder: Path) -> None:
    path = folder / _MANIFEST
    fields = json.loads(path.read_text())
    fields["activations"]["layers"] = [2]
    path.write_text(json.dumps(fields))


def _flip(folder: Path) -> None:
    blob = bytearray((folder / _TENSORS).read_bytes())
    blob[-1] ^= 1
    (folder / _TENSORS).write_bytes(blob)


N = 50
ARTEFACTS: dict[str, Callable[[Path], None]] = {
    "pickle as tensors": lambda f: _replace(f, _pickle(f)),
    "pickle as manifest": lambda f: (f / _MANIFEST).write_bytes(_pickle(f)) and None,
    ".pt file": lambda f: _replace(f, _torch_file(f)),
    ".npy file of objects": lambda f: _replace(f, _numpy_file(f)),
    "zip bomb": lambda f: _replace(f, _zip_bomb()),
    "gzip bomb as manifest": _manifest(gzip.compress(bytes(1 << 24))),
    "file name with ../": lambda f: edit(f, data=[{"file": "../../etc/passwd", "sha256": "0", "rows": 1}]),
    "link out of the folder": _outside,
    "link to a device": _link(_MANIFEST, "/dev/zero"),
    "link to itself": _link(_TENSORS, _TENSORS),
    "pipe": _pipe,
    "directory": _directory,
    "4 GB header": lambda f: _replace(f, _safetensors(b"{}", size=4 << 30)),
    "64 MB header": lambda f: _replace(f, _safetensors(b"{" + b" " * (64 << 20) + b"}")),
    "header without an end": lambda f: _replace(f, _safetensors(b'{"probe.bias":{"dtype"')),
    "overlapping offsets": lambda f: _replace(
        f, _tensors(_entry("probe.a", [2], 0, 8), _entry("probe.b", [2], 4, 12), data=12)
    ),
    "offsets past the end": lambda f: _replace(f, _tensors(_entry("probe.a", [1 << 20], 0, 4 << 20), data=8)),
    "shape that overflows": lambda f: _replace(f, _tensors(_entry("probe.a", [1 << 62, 8], 0, 8), data=8)),
    "NaN score": lambda f: retensor(f, calibration__d=np.full(N, np.nan)),
    "infinite weight": lambda f: retensor(f, probe__bias=np.array([0, 0, np.inf, 0], np.float32)),
    "wrong dtype": lambda f: retensor(f, calibration__d=np.arange(N, dtype=np.float32)),
    "wrong shape": lambda f: retensor(f, probe__0__weight=np.zeros((4, 2), np.float32)),
    "!!python/object": _manifest(b"!!python/object/apply:os.system ['touch canary']"),
    "wrong hash": _flip,
    "edited layer": _relayer,
    "a key twice": _twice,
    "100,000 brackets": _manifest(b"[" * 100_000),
    "integer of 5,000 digits": _field("training", '{"n": ' + "9" * 5000 + "}"),
    "10 GiB manifest": _sparse(_MANIFEST, 10 << 30),
    "300 MiB of tensors": _sparse(_TENSORS, 300 << 20),
}
"""What to do with a sound folder, by name."""
