"""Rows on which d knows a part of v."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail.policy.store import CalibrationScores


@pytest.fixture(scope="session")
def world() -> Callable[..., ScoredRows]:
    """Rows in clusters of one to three that share label and luck."""

    def make(n: int = 300, seed: int = 0) -> ScoredRows:
        rng = np.random.default_rng(seed)
        cluster = np.sort(rng.integers(0, n // 2, n))
        luck = rng.normal(size=n)[cluster]
        label = (luck + rng.normal(size=n) > 0).astype(float)
        p = 1 / (1 + np.exp(-(0.5 * luck + rng.normal(size=n))))
        expert = np.clip(0.25 + 0.5 * label + 0.25 * rng.normal(size=n), 0, 1)
        value = (2 * label - 1) * (expert - p)
        d = 0.5 * value + 0.3 * rng.normal(size=n)
        group = [("x", "y", "z")[i] for i in rng.integers(0, 3, n)]
        return ScoredRows(p, d, expert, label, group, cluster=cluster)

    return make


@pytest.fixture(scope="session")
def calibration(world: Callable[..., ScoredRows]) -> CalibrationScores:
    """Scores of 400 labelled calibration rows."""
    rows = world(400, 1)
    return CalibrationScores.from_rows(d=rows.d, p=rows.p, expert=rows.expert, label=rows.label)
