"""A new budget certificate for an old policy, from the delegation values of unlabelled traffic.

Probes, expert and labelled rows stay as they are: the certificate bounds how often d exceeds lambda, which needs no
labels. The manifest keeps every recalibration. Each takes a smaller delta (:mod:`ctd_guardrail.policy.spending`), so
that all of them hold together.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Certificate, Status, certify, sort_scores
from ctd_guardrail.policy.manifest import RecalibrationRecord
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import MANIFEST_FILE, TENSORS_FILE, finish_write, read_policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.runtime.lock import writing

__all__ = ["HISTORY_FOLDER", "Recalibration", "recalibrate_policy"]

HISTORY_FOLDER = "history"


@dataclass(frozen=True, slots=True)
class Recalibration:
    """Result of a recalibration.

    Attributes:
        certificate: The new certificate, at the delta that was spent. If it is infeasible, the policy is unchanged and
            no delta was spent: feasibility depends on the number of scores alone.
        previous: The certificate that was in force, for the same alpha.
        look: Number of this recalibration, from 1.
        delta: Error probability for all recalibrations together.
        kept: Folder of the old policy; None if the policy is unchanged.
    """

    certificate: Certificate
    previous: Certificate
    look: int
    delta: float
    kept: Path | None


def recalibrate_policy(
    folder: Path,
    scores: FloatArray,
    *,
    source: Path,
    alpha: float | None = None,
    delta: float | None = None,
) -> Recalibration:
    """Certify the budget on new scores, keep the old policy in ``history/``, and put the new one in its place.

    Args:
        folder: The policy.
        scores: Delegation values of traffic that the policy itself scored, shape [n]. They must be exchangeable with
            future traffic: all of it or a random share, never the delegated part.
        source: The file of the scores. Its name and hash are recorded.
        alpha: Budget; None takes the policy's.
        delta: Error probability for all recalibrations together; None takes that of the last one, or the policy's.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1), or delta differs from the one that earlier recalibrations
            spent parts of.
        DataError: A score is NaN or infinite, or the policy already uses these scores.
        PolicyError: The folder is not a policy, or another process writes it.
    """
    read_policy(folder)  # no lock is written into a folder that is not a policy
    with writing(folder):
        return _recalibrate(folder, scores, source, alpha, delta)


def _recalibrate(
    folder: Path, scores: FloatArray, source: Path, alpha: float | None, delta: float | None
) -> Recalibration:
    policy = read_policy(folder)
    manifest = policy.manifest
    past = manifest.recalibrations
    alpha = manifest.calibration.alpha if alpha is None else alpha
    agreed = past[-1].delta if past else manifest.calibration.delta
    delta = agreed if delta is None else delta
    if past and delta != agreed:
        raise ConfigError(
            f"{delta!r} differs from {agreed!r}, the total delta of the recalibrations of this policy",
            key="delta",
            hint="Leave it out, or calibrate a new policy",
        )
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if past and past[-1].sha256 == digest:
        raise DataError("the policy already uses these scores", file=source, hint="Recalibrate with newer traffic")

    look = len(past) + 1
    turns = TurnScores.of(sort_scores(scores))
    spent = spent_delta(delta, look)
    certificate = certify(turns, alpha, spent)
    previous = certify(policy.scores, alpha, spent_delta(delta, look - 1))
    if certificate.status is Status.INFEASIBLE:
        return Recalibration(certificate, previous, look, delta, None)

    kept = folder / HISTORY_FOLDER / f"{look - 1:04d}"
    kept.mkdir(parents=True, exist_ok=True)
    finish_write(folder)
    for name in (MANIFEST_FILE, TENSORS_FILE):
        shutil.copy2(folder / name, kept / name)
    record = RecalibrationRecord(
        created_at=datetime.now(UTC),
        file=source.name,
        sha256=digest,
        rows=certificate.n,
        alpha=alpha,
        delta=delta,
        delta_spent=spent,
        k=certificate.k,
        threshold=certificate.threshold,
    )
    fields = manifest.model_copy(update={"recalibrations": (*past, record)}).model_dump(exclude={"tensors_sha256"})
    write_policy(folder, fields, policy.probe, policy.calibration, turns=turns, used_rows=policy.used_rows)
    return Recalibration(certificate, previous, look, delta, kept)
