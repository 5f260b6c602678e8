"""policy.json: the record of a policy, and the model, expert and texts that it fits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.spec import ProbeSpec
from ctd_guardrail.text.conversation import Context

__all__ = [
    "DESCRIBES",
    "FORMAT",
    "CalibrationRecord",
    "DataRecord",
    "InForce",
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
_Alpha = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


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


def _check_alpha(alpha: float, unit: BudgetUnit) -> None:
    if unit is BudgetUnit.TURN and alpha >= 1.0:
        raise ValueError("alpha is a share of the turns and must be below 1")


class CalibrationRecord(BaseModel):
    """The rows behind the certificate, and the default budget.

    Attributes:
        rows: Number of labelled calibration rows.
        alpha: Budget at calibration: a share of the turns, or a number of calls per conversation.
        delta: Error probability at calibration.
        unit: What alpha is a share or a number of.
        conversations: Number of conversations behind the certificate; None: each row is a conversation of one turn.
        turns: Number of their turns; None: the rows themselves.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.
        seed: Seed of the split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: _Count
    alpha: _Alpha
    delta: _Share
    seed: int
    unit: BudgetUnit = BudgetUnit.TURN
    conversations: _Count | None = None
    turns: _Count | None = None
    max_turns: _Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_alpha(self.alpha, self.unit)
        return self


class RecalibrationRecord(BaseModel):
    """A later certificate, from unlabelled traffic.

    Attributes:
        created_at: When, UTC.
        file: The file of scores, without the folder.
        sha256: Hash of its bytes.
        rows: Number of scores.
        alpha: Budget that was certified, and the default of the rail from then on.
        delta: Error probability for all recalibrations together.
        delta_spent: The part of delta that this recalibration used.
        unit: What alpha is a share or a number of.
        conversations: Number of conversations; None: every score is a conversation of its own.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.
        method: How the threshold was found, as in :class:`ctd_guardrail.policy.budget.Certificate`; None in records of
            earlier versions.
        k: Number of scores above the threshold.
        threshold: lambda for this alpha.
        growing: Hash of the scores in order of arrival, where later recalibrations may continue the file. None
            otherwise.
        continues: Whether the file continues that of the last recalibration, so that no delta was spent.
        drops_risks: Whether this recalibration gave up the certificate of performance risks.
        holds_unread: Whether the scores hold the turns that went to the expert unread.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    created_at: datetime
    file: _FileName
    sha256: str
    rows: _Count
    alpha: _Alpha
    delta: _Share
    delta_spent: _Share
    k: Annotated[int, Field(ge=0)]
    threshold: float
    unit: BudgetUnit = BudgetUnit.TURN
    conversations: _Count | None = None
    max_turns: _Count | None = None
    method: str | None = None
    growing: str | None = None
    continues: bool = False
    drops_risks: bool = False
    holds_unread: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_alpha(self.alpha, self.unit)
        return self


@dataclass(frozen=True, slots=True)
class InForce:
    """Budget and data of the certificate in force: of the last recalibration, or else of the calibration.

    Attributes:
        alpha: The budget.
        delta: Error probability, for all recalibrations together.
        unit: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.
        turns: Number of turns that are stored beside the calibration rows; None: the rows are the turns.
        conversations: Number of their conversations.
        looks: Number of recalibrations that spent a part of delta.
        first_look: For data that grow without another look: number of conversations when they were first certified.
            None for other data.
        holds_unread: Whether the scores hold the turns that went to the expert unread, or the policy states them apart.
    """

    alpha: float
    delta: float
    unit: BudgetUnit
    max_turns: int | None
    turns: int | None
    conversations: int | None
    looks: int
    first_look: int | None
    holds_unread: bool


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
        recalibrations: Every later certificate, oldest first. The last one is in force. The number of those that
            spent a part of delta sets the part of the next.
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

    @property
    def in_force(self) -> InForce:
        """Budget and data of the certificate in force."""
        last = self.recalibrations[-1] if self.recalibrations else None
        record = last or self.calibration
        turns = self.calibration.turns if last is None else last.rows
        return InForce(
            alpha=record.alpha,
            delta=record.delta,
            unit=record.unit,
            max_turns=record.max_turns,
            turns=turns,
            conversations=turns if record.conversations is None else record.conversations,
            looks=sum(not past.continues for past in self.recalibrations),
            first_look=self._first_look,
            holds_unread=last is None or last.holds_unread,
        )

    @property
    def _first_look(self) -> int | None:
        if not self.recalibrations or self.recalibrations[-1].growing is None:
            return None
        first = next((past for past in reversed(self.recalibrations) if not past.continues), self.recalibrations[0])
        return first.rows if first.conversations is None else first.conversations

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
