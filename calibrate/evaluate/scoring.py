"""Rows through a policy, by the code that the rail runs: its base model, its probes, its windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from calibrate.data import Dataset
from calibrate.features.chunks import chunks, compute, distinct
from ctd_guardrail.activations.engine import get_engine
from ctd_guardrail.policy.match import check_fingerprint
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows

__all__ = ["score_rows"]


def score_rows(
    policy: Policy, dataset: Dataset, rows: NDArray[np.int64], *, device: str, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return p and d of the rows, each of shape [rows].

    Args:
        policy: Names the base model and holds the probes.
        dataset: The rows.
        rows: Indices of those to score.
        device: ``auto``, ``cpu``, or a torch device.
        progress: Where a bar is drawn.

    Raises:
        ActivationError: The base model cannot be loaded.
        PolicyMismatchError: What is loaded is not what the policy was calibrated on.
        DataError: A row is too long, or its chat template refuses it; file and row are named.
    """
    manifest = policy.manifest
    engine = get_engine(manifest.activations, device=device)
    check_fingerprint(manifest, engine.fingerprint)
    probes = Probes(manifest.probe, policy.probe)
    places = distinct(dataset, rows)
    bar = progress.add_task("Scores", total=len(places))
    scores = np.empty((rows.size, 2))
    for digests in chunks(dataset, {digest: int(rows[wanted[0]]) for digest, wanted in places.items()}):
        wanted = [int(rows[places[digest][0]]) for digest in digests]
        found = compute(dataset, wanted, lambda conversations: engine.run_many(conversations, probes))
        for digest, windows in zip(digests, found, strict=True):
            scores[places[digest]] = over_windows(windows)
        progress.advance(bar, len(digests))
    return scores[:, 0], scores[:, 1]
