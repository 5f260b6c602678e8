"""The policy of most tests of whole rails."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np

from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.policy.store import CalibrationScores, write_policy
from ctd_guardrail.probes.ragged import segment_mean
from ctd_guardrail.text.conversation import Conversation

__all__ = ["RAIL_TEXTS", "write_rail_policy"]

# Text -> (p, d) of the policy that `make_rail_folder` writes; its threshold lies between the two values of d.
RAIL_TEXTS = {
    "a plain question": (0.1, 0.0),
    "a plain threat": (0.9, 0.0),
    "an odd question": (0.9, 0.9),
    "an odd and harmful wish": (0.1, 0.9),
}


def write_rail_policy(folder: Path, model: Path) -> Path:
    """Write a policy whose probes give the scores of RAIL_TEXTS exactly: one linear head fits few texts."""
    spec = ActivationSpec(model=str(model), layers=(1,), site="residual")
    engine = load_base_model(spec, device="cpu")
    pooled = np.concatenate(engine.run_many([Conversation.from_text(text) for text in RAIL_TEXTS], segment_mean))
    wanted = []
    for p, d in RAIL_TEXTS.values():
        unsafe = 20.0 if p < 0.5 else -20.0
        # d = eta (e1 - p) + (1 - eta)(p - e0): the expert is right where d is large, and agrees with p elsewhere.
        wanted.append([np.log(p / (1 - p)), unsafe, 1.0, 0.0] if d else [np.log(p / (1 - p)), 0.0, p, p])
    augmented = np.hstack([pooled, np.ones((len(pooled), 1))]).astype(np.float64)
    solution = np.linalg.lstsq(augmented, np.array(wanted), rcond=None)[0].T
    probe = {
        "0.weight": solution[:, :-1].astype(np.float32),
        "bias": solution[:, -1].astype(np.float32),
    }
    n = 200
    write_policy(
        folder,
        {
            "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            "versions": {},
            "activations": spec,
            "fingerprint": engine.fingerprint,
            "expert": "recorded:expert",
            "calibration": {"rows": n, "alpha": 0.2, "delta": 0.1, "seed": 0},
            "data": [],
            "training": {},
            "evaluation": {},
        },
        probe,
        CalibrationScores.from_rows(d=np.linspace(-0.5, 0.6, n), p=np.linspace(0, 1, n)),
    )
    return folder
