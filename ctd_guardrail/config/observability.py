"""The sections ``monitor``, ``audit_log`` and ``rollout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ctd_guardrail.config.types import Section, Share, VariableName

__all__ = ["AuditLogConfig", "MonitorConfig", "RolloutConfig"]


class MonitorConfig(Section):
    """Alarms on the rate of delegation and on the scores, and audits of what the cascade misses."""

    delta: Share = 0.05
    """Probability that an alarm is ever false, for each alarm. Lower it if you run many rails."""
    audit_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all inputs that goes to the expert by a random draw, to estimate what the cascade misses. The budget
    pays for it: the threshold is certified at (alpha - audit_share) / (1 - audit_share)."""
    on_alarm: Literal["report", "not_ready"] = "report"
    """Effect of an alarm: ``report`` writes a log line, a metric and a note; ``not_ready`` also makes the sidecar
    report that it is not ready. It answers in both cases."""
    state: Path | None = None
    """Folder for the monitors' state and the recent scores, relative to the configuration's folder. Without it, a
    restart begins new monitors. Give each process its own folder."""


class AuditLogConfig(Section):
    """A file with one JSON object a line: every block, every failure, and a share of the rest, without any text."""

    path: Path
    """The file, relative to the configuration's folder. The host rotates it."""
    key_env: VariableName
    """Name of the environment variable with a secret of 16 to 64 bytes. Conversations are hashed with it."""
    sample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of the allowed inputs that is written. Raise it if you need more lines to compare with."""
    scores: bool = False
    """Whether p, d and the expert's score are written. Scores help an analyst, and an attacker who reads the file."""


class RolloutConfig(Section):
    """Enforce for a share of the conversations. The others are in shadow mode."""

    enforce_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of the conversations that is enforced. A conversation stays on its side, also at a larger share."""
    key_env: VariableName
    """Name of the environment variable with a secret of 16 to 64 bytes. It draws the conversations."""
    by: Literal["conversation", "principal"] = "conversation"
    """Unit of the draw: ``conversation``, or ``principal`` (all conversations of a principal on one side)."""
