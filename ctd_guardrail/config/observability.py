"""The keys ``monitor``, ``audit_log`` and ``rollout`` of the section ``custom_data.ctd``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.config.address import VariableName

__all__ = ["AuditLogConfig", "MonitorConfig", "RolloutConfig"]


class MonitorConfig(BaseModel):
    """Watch the traffic: is too much delegated, have the scores changed, what is missed?

    Attributes:
        delta: Probability of any false alarm, ever, for each alarm.
        audit_share: Share of all inputs that goes to the expert by a coin, to learn what the cascade misses. It is paid
            out of alpha: the threshold is certified at (alpha - audit_share) / (1 - audit_share).
        on_alarm: ``report``: an alarm is a log line, a metric and a note; ``not_ready``: the sidecar also says that it
            is not ready, and still answers.
        state: Folder in which state and recent scores outlive the process, relative to the configuration's; None: they
            do not. One process writes to a folder.
        save_every_s: Seconds between saves, and so the most that a killed process loses.
        keep_scores: Number of recent scores that are kept for a recalibration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    audit_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    on_alarm: Literal["report", "not_ready"] = "report"
    state: Path | None = None
    save_every_s: Annotated[float, Field(ge=1.0, le=86_400.0, allow_inf_nan=False)] = 30.0
    keep_scores: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000


class AuditLogConfig(BaseModel):
    """A file with one JSON object a line: every block, every failure, and a share of the rest, without any text.

    Attributes:
        path: The file, relative to the configuration's folder. The host rotates it.
        key_env: Name of the environment variable with a secret of 16 to 64 bytes, under which conversations are
            hashed.
        sample: Share of the inputs that passed which is written.
        scores: Whether p, d and the expert's score are written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    key_env: VariableName
    sample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    scores: bool = False


class RolloutConfig(BaseModel):
    """Enforce for a share of the conversations; the rest is in shadow.

    Attributes:
        enforce_share: The share. A conversation stays on its side from its first turn to its last, and one that is
            enforced at a share is enforced at every larger one.
        key_env: Name of the environment variable with a secret of 16 to 64 bytes, by which conversations are drawn.
        by: ``conversation``, or ``principal``: all conversations of one are on one side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enforce_share: Annotated[float, Field(ge=0.0, le=1.0)]
    key_env: VariableName
    by: Literal["conversation", "principal"] = "conversation"
