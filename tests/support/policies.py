"""A sound policy that no model is needed for."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np

from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.policy.store import CalibrationScores, Policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.policy.unreadable import UnreadableTurns

__all__ = ["write_plain_policy"]


def write_plain_policy(
    folder: Path,
    *,
    rows: int,
    scores: CalibrationScores | None = None,
    turns: TurnScores | None = None,
    unreadable: UnreadableTurns | None = None,
    **changes: Any,
) -> Policy:
    """Write a policy on a model of width 3, with evenly spaced scores or these; other arguments change its manifest."""
    fields: dict[str, Any] = {
        "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "versions": {},
        "activations": ActivationSpec(model="m", layers=(1,), site="residual"),
        "fingerprint": Fingerprint(
            architecture="BertModel",
            hidden_size=3,
            window=128,
            weights_sha256="a" * 64,
            tokenizer_sha256="b" * 64,
            template_sha256="c" * 64,
        ),
        "expert": "judge-1",
        "calibration": {"rows": rows, "alpha": 0.1, "delta": 0.1, "seed": 0},
        "data": [],
        "training": {},
        "evaluation": {},
    }
    probe = {"bias": np.ones(4, np.float32), "0.weight": np.ones((4, 3), np.float32)}
    scores = scores or CalibrationScores(np.linspace(-1, 1, rows), np.linspace(0, 1, rows))
    return write_policy(folder, fields | changes, probe, scores, turns=turns, unreadable=unreadable)
