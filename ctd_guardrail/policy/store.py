"""A policy folder: policy.json and policy.safetensors, read with suspicion and written whole."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ctd_guardrail._typing import DigestArray, Float32Array, FloatArray
from ctd_guardrail.errors import PolicyFormatError, PolicyIntegrityError
from ctd_guardrail.policy.files import (
    MANIFEST_FILE,
    TENSORS_FILE,
    finish_write,
    parse_json,
    read_manifest_file,
    read_tensors,
    write_files,
)
from ctd_guardrail.policy.manifest import DESCRIBES, Manifest
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.policy.unreadable import Unreadable, UnreadableTurns
from ctd_guardrail.probes.spec import check_tensors
from ctd_guardrail.text.normalise import NORMALISER

__all__ = [
    "MANIFEST_FILE",
    "TENSORS_FILE",
    "CalibrationScores",
    "Policy",
    "finish_write",
    "read_policy",
    "write_policy",
]

_PROBE: Final = "probe."
_CALIBRATION: Final = "calibration."
_TURNS: Final = "turns.d"
_CONVERSATION: Final = "turns.conversation"
# Where earlier versions kept the scores of a recalibration.
_EARLIER_TURNS: Final = "traffic.d"
_UNREADABLE: Final = "unreadable.conversation"
_OVERLONG: Final = "unreadable.is_overlong"
_USED_ROWS: Final = "used_rows"


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """Scores of the calibration rows, ascending in d, row by row.

    Attributes:
        d: Delegation values, shape [n].
        p: Safety probe, P(unsafe), shape [n].
        expert: Expert, P(unsafe), shape [n], NaN where it refused the row; None where the certificate came from
            unlabelled traffic.
        label: 1 = unsafe, shape [n]; None if there are no labels.
    """

    d: FloatArray
    p: FloatArray
    expert: FloatArray | None = None
    label: FloatArray | None = None

    @property
    def scored(self) -> CalibrationScores:
        """The rows that the expert gave a score for: all that a choice or a merge can learn from."""
        if self.expert is None:
            return self
        rows = ~np.isnan(self.expert)
        label = None if self.label is None else self.label[rows]
        return CalibrationScores(self.d[rows], self.p[rows], self.expert[rows], label)

    @classmethod
    def from_rows(
        cls, *, d: FloatArray, p: FloatArray, expert: FloatArray | None = None, label: FloatArray | None = None
    ) -> CalibrationScores:
        """Sort rows by d."""
        order = np.argsort(d, kind="stable")
        return cls(
            d=d[order],
            p=p[order],
            expert=None if expert is None else expert[order],
            label=None if label is None else label[order],
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What calibration produces and the rail reads.

    Attributes:
        manifest: Records the inputs of the calibration.
        probe: Parameters of the two probes, by name.
        calibration: Scores of the labelled calibration rows.
        turns: Delegation values behind the certificate in force, where these are not simply those of the labelled
            calibration rows: the calibration was on conversations, or the policy was recalibrated.
        used_rows: 64-bit digests of the rows that it was trained or calibrated on, ascending: an evaluation leaves
            them out. None if the calibration did not record them.
        unreadable: Turns of the calibration conversations that have no delegation value; None: there are none.
        digest: SHA-256 of the manifest file; empty if the policy was not read from one.
    """

    manifest: Manifest
    probe: Mapping[str, Float32Array]
    calibration: CalibrationScores
    turns: TurnScores | None = None
    used_rows: DigestArray | None = None
    unreadable: UnreadableTurns | None = None
    digest: str = ""

    @property
    def scores(self) -> TurnScores:
        """The delegation values behind the certificate in force."""
        return TurnScores(self.calibration.d) if self.turns is None else self.turns

    def scores_with(self, causes: Collection[Unreadable]) -> TurnScores:
        """Return the scores with the unreadable turns that go to the expert.

        Args:
            causes: Causes that the rail sends to the expert. It blocks turns with another cause, which cost no call.
        """
        return self.scores if self.unreadable is None else self.unreadable.beside(self.scores, causes)


def write_policy(
    folder: Path,
    manifest: Mapping[str, Any],
    policy_probe: Mapping[str, Float32Array],
    calibration: CalibrationScores,
    *,
    turns: TurnScores | None = None,
    used_rows: DigestArray | None = None,
    unreadable: UnreadableTurns | None = None,
) -> Policy:
    """Write a policy folder so that a reader sees the old policy or the new one, never a mixture.

    Args:
        folder: Created where it does not exist.
        manifest: Fields of :class:`Manifest` without its hashes; where it does not name a normaliser, this
            version's is noted.
        policy_probe: Parameters of the two probes, by name.
        calibration: Scores of the labelled calibration rows.
        turns: Delegation values behind the certificate, where these are not simply those of the calibration rows.
        used_rows: Digests of the rows that it was trained or calibrated on, ascending.
        unreadable: Turns of the calibration conversations that have no delegation value.

    Returns:
        The policy as a reader will see it.

    Raises:
        PolicyLockedError: Another process writes the folder.
        ConfigError: The folder cannot be written to.
    """
    # safetensors writes the bytes as they lie in memory: a transposed array would come back scrambled.
    tensors: dict[str, NDArray[Any]] = {
        _PROBE + name: np.ascontiguousarray(array) for name, array in policy_probe.items()
    }
    for name in ("d", "p", "expert", "label"):
        column = getattr(calibration, name)
        if column is not None:
            tensors[_CALIBRATION + name] = np.ascontiguousarray(column)
    if turns is not None:
        tensors[_TURNS] = np.ascontiguousarray(turns.d)
        if turns.conversation is not None:
            tensors[_CONVERSATION] = np.ascontiguousarray(turns.conversation)
    if used_rows is not None:
        tensors[_USED_ROWS] = np.ascontiguousarray(used_rows)
    if unreadable is not None:
        tensors[_UNREADABLE] = np.ascontiguousarray(unreadable.conversation)
        tensors[_OVERLONG] = np.ascontiguousarray(unreadable.is_overlong)
    blob = save(tensors)
    digest = hashlib.sha256(blob).hexdigest()
    hashes = {"tensors_sha256": digest, "pins_sha256": digest}
    checked = Manifest.model_validate({"normaliser": NORMALISER, **manifest, **hashes})
    checked = checked.model_copy(update={"pins_sha256": checked.hash_pins()})
    write_files(folder, manifest=(checked.model_dump_json(indent=2) + "\n").encode(), tensors=blob)
    return Policy(checked, dict(policy_probe), calibration, turns, used_rows, unreadable)


def read_policy(folder: Path) -> Policy:
    """Read a policy folder.

    Raises:
        PolicyFormatError: The folder, a file, a field or a tensor is missing or malformed.
        PolicyIntegrityError: The tensors, or what decisions depend on, are not those that it was written with.
    """
    raw = read_manifest_file(folder / MANIFEST_FILE)
    digest, manifest = hashlib.sha256(raw).hexdigest(), _parse_manifest(raw, folder)
    blob = read_tensors(folder, sha256=manifest.tensors_sha256)
    try:
        tensors = load(blob)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PolicyFormatError(f"{folder / TENSORS_FILE} is not a safetensors file") from error
    turns, used_rows = _pop_turns(tensors), tensors.pop(_USED_ROWS, None)
    unreadable = _pop_unreadable(folder, tensors)
    probe = {name.removeprefix(_PROBE): array for name, array in tensors.items() if name.startswith(_PROBE)}
    columns = {
        name.removeprefix(_CALIBRATION): array for name, array in tensors.items() if name.startswith(_CALIBRATION)
    }
    if len(probe) + len(columns) != len(tensors):
        raise PolicyFormatError(
            f"{folder / TENSORS_FILE} holds tensors that do not belong to a policy",
            hint="Copy both files of the policy again",
        )
    _check_probe(folder, manifest, probe)
    checked = _check_turns(folder, manifest, *turns)
    if used_rows is not None and (used_rows.ndim != 1 or used_rows.dtype != np.uint64):
        raise PolicyFormatError(f"{folder / TENSORS_FILE}: {_USED_ROWS} are not 64-bit digests")
    return Policy(
        manifest, probe, _check_calibration(folder, manifest, columns), checked, used_rows, unreadable, digest
    )


def _parse_manifest(raw: bytes, folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(parse_json(raw, folder / MANIFEST_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise PolicyFormatError(
            f"{folder / MANIFEST_FILE}: {key}: {first['msg']}",
            hint="Calibrate again with this version, or use the version that wrote the policy",
        ) from error
    if manifest.hash_pins() != manifest.pins_sha256:
        if manifest.is_of_an_earlier_version:
            raise PolicyIntegrityError(
                f"{folder / MANIFEST_FILE} was written by an earlier version, whose hash does not cover "
                "every field that decisions depend on",
                hint="Run `ctd-calibrate run` again: it continues from the saved results and expert scores",
            )
        raise PolicyIntegrityError(
            f"{folder / MANIFEST_FILE} was edited in a field that decisions depend on: only "
            f"{', '.join(sorted(DESCRIBES))} may be edited",
            hint="Copy the policy again, or calibrate one with these settings",
        )
    return manifest


def _check_probe(folder: Path, manifest: Manifest, probe: Mapping[str, NDArray[Any]]) -> None:
    width = manifest.fingerprint.hidden_size * len(manifest.activations.layers)
    try:
        check_tensors(manifest.probe, width, probe)
    except PolicyFormatError as error:
        raise PolicyFormatError(
            f"{folder / TENSORS_FILE}: {error.problem}", hint="Copy both files of the policy again, or calibrate again"
        ) from None


def _check_calibration(folder: Path, manifest: Manifest, columns: Mapping[str, NDArray[Any]]) -> CalibrationScores:
    rows = manifest.calibration.rows
    if not {"d", "p"} <= set(columns) <= {"d", "p", "expert", "label"}:
        raise PolicyFormatError(f"{folder / TENSORS_FILE}: calibration columns are {sorted(columns)}")
    for name, column in columns.items():
        # A row that the expert refused has no score of it. Its d counts in the budget all the same.
        is_valid = np.isfinite(column) | (np.isnan(column) & (name == "expert"))
        if column.shape != (rows,) or column.dtype != np.float64 or not is_valid.all():
            raise PolicyFormatError(f"{folder / TENSORS_FILE}: calibration.{name} is not {rows} finite float64 values")
    if (np.diff(columns["d"]) < 0).any():
        raise PolicyFormatError(f"{folder / TENSORS_FILE}: calibration.d is not in ascending order")
    return CalibrationScores(columns["d"], columns["p"], columns.get("expert"), columns.get("label"))


def _pop_turns(tensors: dict[str, NDArray[Any]]) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Take the turns' tensors out of those of the file."""
    name = _TURNS if _TURNS in tensors else _EARLIER_TURNS
    return tensors.pop(name, None), tensors.pop(_CONVERSATION, None)


def _pop_unreadable(folder: Path, tensors: dict[str, NDArray[Any]]) -> UnreadableTurns | None:
    """Take the unreadable turns out of the tensors of the file, and check them."""
    conversation, is_overlong = tensors.pop(_UNREADABLE, None), tensors.pop(_OVERLONG, None)
    if conversation is None and is_overlong is None:
        return None
    if (
        conversation is None
        or is_overlong is None
        or conversation.ndim != 1
        or conversation.shape != is_overlong.shape
        or conversation.dtype != np.int64
        or is_overlong.dtype != np.bool_
        or (conversation < 0).any()
    ):
        raise PolicyFormatError(f"{folder / TENSORS_FILE}: {_UNREADABLE} and {_OVERLONG} do not name turns")
    return UnreadableTurns(conversation, is_overlong)


def _check_turns(
    folder: Path, manifest: Manifest, d: NDArray[Any] | None, conversation: NDArray[Any] | None
) -> TurnScores | None:
    """Check the turns against the record of the certificate in force."""
    record, file = manifest.in_force, folder / TENSORS_FILE
    if d is None and conversation is None and record.turns is None:
        return None
    if d is None or d.shape != (record.turns,) or d.dtype != np.float64 or (np.isnan(d) | (d == -np.inf)).any():
        raise PolicyFormatError(f"{file}: {_TURNS} is not {record.turns} float64 values above -inf")
    if (d[1:] < d[:-1]).any():
        raise PolicyFormatError(f"{file}: {_TURNS} is not in ascending order")
    if conversation is None:
        found = d.size
    elif conversation.shape != d.shape or conversation.dtype != np.int64:
        raise PolicyFormatError(f"{file}: {_CONVERSATION} is not {record.turns} int64 values")
    else:
        numbers = np.unique(conversation)
        found = numbers.size
        if numbers[0] != 0 or numbers[-1] != found - 1:
            raise PolicyFormatError(f"{file}: {_CONVERSATION} does not number conversations from 0 without gaps")
    if found != record.conversations:
        raise PolicyFormatError(f"{file}: {_CONVERSATION} has {found} conversations, not {record.conversations}")
    return TurnScores(d, conversation)
