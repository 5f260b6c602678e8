"""policy.json: the record of a policy, and the model, expert and texts that it fits."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.text.conversation import Context

__all__ = [
    "DESCRIBES",
    "FORMAT",
    "CalibrationRecord",
    "DataRecord",
    "Manifest",
    "PerformanceRecord",
    "RecalibrationRecord",
    "RiskBound",
]

FORMAT: Literal[1] = 1

DESCRIBES: Final = frozenset({"created_at", "versions", "data", "training", "evaluation"})
"""Fields that describe how the policy was made. No decision depends on them, so they may be edited. Every other field
is hashed, also one that a later version adds."""

_EARLIER_PINS: Final = frozenset(
    {"activations", "fingerprint", "probe", "normaliser", "context", "expert", "tensors_sha256"}
)
"""Fields that earlier versions hashed: those behind the scores, but neither the rule for a verdict nor the budget."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
_Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class DataRecord(BaseModel):
    """A data file that the policy was made from.

    Attributes:
        file: Its name, without the folder.
        sha256: Hash of its bytes.
        rows: Rows that were read from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: _FileName
    sha256: str
    rows: int


class CalibrationRecord(BaseModel):
    """The rows behind the certificate, and the default budget.

    Attributes:
        rows: Number n of calibration rows, one from each cluster of dependent rows.
        alpha: Budget at calibration.
        delta: Error probability at calibration.
        seed: Seed of the split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Annotated[int, Field(ge=1)]
    alpha: _Share
    delta: _Share
    seed: int


class RecalibrationRecord(BaseModel):
    """A later certificate, from unlabelled traffic.

    Attributes:
        created_at: When, UTC.
        file: The file of scores, without the folder.
        sha256: Hash of its bytes.
        rows: Number of scores.
        alpha: Budget that was certified.
        delta: Error probability for all recalibrations together.
        delta_spent: The part of delta that this recalibration used.
        k: Number of scores that may lie above the threshold.
        threshold: lambda for this alpha.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    created_at: datetime
    file: _FileName
    sha256: str
    rows: Annotated[int, Field(ge=1)]
    alpha: _Share
    delta: _Share
    delta_spent: _Share
    k: Annotated[int, Field(ge=0)]
    threshold: float


class RiskBound(BaseModel):
    """A performance risk and its bound.

    Attributes:
        metric: Name of the risk, one of :class:`calibrate.risk.losses.Metric`.
        max: The bound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    max: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class PerformanceRecord(BaseModel):
    """A setting of the cascade that was certified for performance risks together with the budget.

    Attributes:
        risks: The bounds beside the budget, at the calibration's delta for budget and risks together.
        threshold: lambda; None if nothing is delegated.
        band: Half-width of the abstain band around the decision threshold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    risks: tuple[RiskBound, ...]
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None
    band: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Manifest(BaseModel):
    """The content of policy.json.

    Attributes:
        format: Version of this layout.
        created_at: When it was written, UTC.
        versions: Versions of the packages that made it.
        activations: Where activations are read.
        fingerprint: Hashes of the loaded base model. A rail that loads another one refuses to start.
        probe: Parts of the two probes.
        normaliser: Version of the text normaliser; None if there was none.
        context: Text around the user's turn that the probes and the expert read.
        merge: Rule that makes one score of the probe's and the expert's.
        decision_threshold: tau: a score of at least tau, the probe's or the merged one, blocks.
        expert: Identity of the expert whose scores the delegation value was trained on; ``recorded:COLUMN`` for
            scores that came with the data.
        calibration: The labelled rows behind the first certificate.
        recalibrations: Every later certificate, oldest first. The last one is in force, and their number sets the
            delta of the next.
        performance: The setting that was certified for performance risks; None if only the budget is certified.
        data: The data files.
        training: Candidates for the probes, and their cross-validated scores.
        evaluation: Figures on the test split.
        tensors_sha256: Hash of policy.safetensors.
        pins_sha256: Hash of all fields that a decision depends on, to detect edits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    created_at: datetime
    versions: dict[str, str]
    activations: ActivationSpec
    fingerprint: Fingerprint
    probe: ProbeSpec = ProbeSpec()
    normaliser: str | None = None
    context: Context = Context.CONVERSATION
    merge: Merge = Merge()
    decision_threshold: _Share = 0.5
    expert: Annotated[str, Field(min_length=1)]
    calibration: CalibrationRecord
    recalibrations: tuple[RecalibrationRecord, ...] = ()
    performance: PerformanceRecord | None = None
    data: list[DataRecord]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    tensors_sha256: _Sha256
    pins_sha256: _Sha256

    def hash_pins(self) -> str:
        """Return the right value of ``pins_sha256``."""
        return self._hash(set(type(self).model_fields) - DESCRIBES - {"pins_sha256"})

    @property
    def is_of_an_earlier_version(self) -> bool:
        """Whether an earlier version wrote the hash. Such a hash covers only a part of the pinned fields."""
        return self.pins_sha256 == self._hash(set(_EARLIER_PINS))

    def _hash(self, fields: set[str]) -> str:
        # Without defaults: the new settings of a later version do not change the hash of older policies.
        pins = self.model_dump_json(include=fields, exclude_defaults=True)
        return hashlib.sha256(pins.encode()).hexdigest()
