"""ctd_export.json: the origin of an exported checkpoint, and known answers of an engine that serves it.

The file is beside the weights. Engines ignore it; the guard uses it to verify that the engine serves its probes.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.errors import PolicyFormatError, PolicyMismatchError
from ctd_guardrail.policy.manifest import Manifest

__all__ = [
    "RECORD_FILE",
    "Check",
    "ExportRecord",
    "check_projection",
    "check_record",
    "hash_projection",
    "read_record",
    "serve_command",
]

RECORD_FILE: Final = "ctd_export.json"
# Thousands of columns for a thousand tokens.
_LARGEST_FILE: Final = 1 << 26


class Check(BaseModel):
    """One window and its columns, by which a served checkpoint is recognised.

    Attributes:
        token_ids: The window.
        values: Its columns as the base model in process gave them, little-endian float32 in base64, row by row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    token_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    values: str

    @classmethod
    def of(cls, token_ids: tuple[int, ...], columns: Float32Array) -> Check:
        """Record the columns of a window, shape [len(token_ids), columns]."""
        return cls(token_ids=token_ids, values=base64.b64encode(columns.astype("<f4").tobytes()).decode("ascii"))

    def columns(self) -> Float32Array:
        """Return the columns, shape [len(token_ids), columns].

        Raises:
            ValueError: They are not base64, or not as many for each token.
        """
        values = np.frombuffer(base64.b64decode(self.values, validate=True), dtype="<f4")
        return values.astype(np.float32).reshape(len(self.token_ids), -1)


class ExportRecord(BaseModel):
    """The content of ctd_export.json.

    Attributes:
        format: Version of this layout.
        created_at: When it was written, UTC.
        versions: Versions of the packages that it was made with.
        activations: Where the policy reads activations.
        fingerprint: The base model that was cut off and exported.
        projection_sha256: Hash of the probes' matrix, which is the checkpoint's ``score.weight``.
        columns: Rows of that matrix: numbers that the engine gives for each token.
        checks: Windows whose columns are known, a long one among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    created_at: datetime
    versions: dict[str, str]
    activations: ActivationSpec
    fingerprint: Fingerprint
    projection_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    columns: Annotated[int, Field(ge=1)]
    checks: Annotated[tuple[Check, ...], Field(min_length=1)]


def hash_projection(projection: Float32Array) -> str:
    """Return the hash of the probes' matrix, its shape included."""
    digest = hashlib.sha256(str(projection.shape).encode())
    digest.update(np.ascontiguousarray(projection, dtype="<f4").tobytes())
    return digest.hexdigest()


def read_record(folder: Path) -> ExportRecord:
    """Read ctd_export.json.

    Raises:
        PolicyFormatError: It is missing or malformed.
    """
    file = folder / RECORD_FILE
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise PolicyFormatError(f"{file} is larger than {_LARGEST_FILE >> 20} MiB", hint="Export the policy again")
        record = ExportRecord.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PolicyFormatError(
            f"{file} cannot be read ({error.strerror})",
            hint="Set `source.export` to the folder that `ctd-guardrail export` wrote; the weights may be elsewhere",
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise PolicyFormatError(f"{file}: {key}: {first['msg']}", hint="Export the policy again") from None
    for number, check in enumerate(record.checks):
        try:
            columns = check.columns()
        except ValueError:
            raise PolicyFormatError(f"{file}: checks.{number}: not base64 of float32", hint="Export again") from None
        if columns.shape[1] != record.columns or not np.isfinite(columns).all():
            raise PolicyFormatError(
                f"{file}: checks.{number}: not {record.columns} finite numbers a token", hint="Export the policy again"
            )
    return record


def check_record(record: ExportRecord, manifest: Manifest, *, folder: Path) -> None:
    """Refuse an export of another base model.

    Another place of the same base model is no difference, and neither is a new threshold: it is not exported.

    Raises:
        PolicyMismatchError: Base model, site, layers or dtype differ; it is named.
    """
    place = {"model": "", "revision": None}
    pairs = {
        "base model": (record.fingerprint, manifest.fingerprint),
        "place of the activations": tuple(
            spec.model_copy(update=place) for spec in (record.activations, manifest.activations)
        ),
    }
    for name, (exported, wanted) in pairs.items():
        if exported != wanted:
            raise _mismatch(folder, name)


def check_projection(record: ExportRecord, projection: Float32Array, *, folder: Path) -> None:
    """Refuse an export of other probes.

    Raises:
        PolicyMismatchError: They differ.
    """
    if record.projection_sha256 != hash_projection(projection):
        raise _mismatch(folder, "pair of probes")


def serve_command(record: ExportRecord, export: Path, *, name: str) -> list[str]:
    """Return the command by which vLLM serves an export.

    Without the task, vLLM pools a sequence classifier to one vector a prompt. Without the data type, it runs a float32
    model in float16.

    Args:
        record: Of the export.
        export: Its folder.
        name: The name of the served model.
    """
    return [
        *("vllm", "serve", str(export), "--served-model-name", name),
        *("--pooler-config.task", "token_classify"),
        *("--dtype", record.activations.dtype, "--max-model-len", str(record.fingerprint.window)),
    ]


def _mismatch(folder: Path, what: str) -> PolicyMismatchError:
    return PolicyMismatchError(
        f"{folder / RECORD_FILE} was exported from a policy with another {what}",
        hint="Run `ctd-guardrail export` on this policy, and serve that export",
    )
