"""A new budget certificate for an old policy, from the delegation values of unlabelled traffic.

Probes, expert and labelled rows stay as they are: the certificate bounds how often d exceeds lambda, which needs no
labels. The manifest keeps every recalibration. Each takes a smaller delta (:mod:`ctd_guardrail.policy.spending`), so
that all of them hold together. Scores that grow are an exception: their certificates hold together at one delta.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.errors import ConfigError, DataError
from ctd_guardrail.policy.budget import Certificate, Status, certify
from ctd_guardrail.policy.manifest import InForce, RecalibrationRecord
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import MANIFEST_FILE, TENSORS_FILE, Policy, finish_write, read_policy, write_policy
from ctd_guardrail.policy.turns import TurnScores
from ctd_guardrail.runtime.lock import writing

__all__ = ["HISTORY_FOLDER", "Recalibration", "Traffic", "recalibrate_policy"]

HISTORY_FOLDER = "history"


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Turns that the policy itself scored, in order of arrival.

    Their conversations must be exchangeable with future ones: all of them or a random share, never the delegated part.

    Attributes:
        d: Delegation values, shape [turns]; ``+inf`` for a turn that went to the expert unread.
        conversation: Number of each turn's conversation from 0, by first appearance, shape [turns]; None: every turn
            is a conversation of its own.
        source: The file of the scores. Its name and hash are recorded.
    """

    d: FloatArray
    conversation: IntArray | None
    source: Path


@dataclass(frozen=True, slots=True)
class Recalibration:
    """Result of a recalibration.

    Attributes:
        certificate: The new certificate, at the delta that was spent. If it is infeasible, the policy is unchanged and
            no delta was spent: feasibility depends on the number of scores alone.
        previous: The certificate that was in force, for the same alpha.
        look: Number of looks at new scores so far, from 1. To continue growing scores is no new look.
        delta: Error probability for all recalibrations together.
        kept: Folder of the old policy; None if the policy is unchanged.
    """

    certificate: Certificate
    previous: Certificate
    look: int
    delta: float
    kept: Path | None


@dataclass(frozen=True, slots=True)
class _Look:
    """The place of a recalibration among the others.

    Attributes:
        number: Number of looks so far, this one included, from 1.
        growing: Hash of scores that may be continued; None if they may not.
        first_look: Number of conversations when growing scores were first certified; None if they do not grow.
        continues: Whether the scores continue those of the last recalibration.
    """

    number: int
    growing: str | None = None
    first_look: int | None = None
    continues: bool = False


def recalibrate_policy(
    folder: Path,
    traffic: Traffic,
    *,
    alpha: float | None = None,
    delta: float | None = None,
    max_turns: int | None = None,
    is_growing: bool = False,
    drops_risks: bool = False,
    holds_unread: bool = False,
) -> Recalibration:
    """Certify the budget on new scores, keep the old policy in ``history/``, and put the new one in its place.

    Args:
        folder: The policy.
        traffic: The scores.
        alpha: Budget; None takes the policy's. It becomes the policy's.
        delta: Error probability for all recalibrations together; None takes that of the last one, or the policy's. It
            becomes the policy's.
        max_turns: Largest number of turns of a future conversation; None takes the policy's, or that of the scores.
        is_growing: Whether the scores may be continued: a later recalibration on the same scores and more spends no
            delta. If the last recalibration was such a one, these must continue its scores.
        drops_risks: Whether a certificate of performance risks may be given up.
        holds_unread: Whether the scores hold every turn that went to the expert unread, even if there were none. Scores
            with such a turn do.

    Raises:
        ConfigError: alpha or delta lies outside its range, delta differs from the one that earlier recalibrations
            spent parts of, the policy certifies risks that are not to be dropped, or growing scores change their alpha.
        DataError: A score is NaN or infinite, the policy already uses these scores, or they do not continue the
            growing ones.
        PolicyError: The folder is not a policy, or another process writes it.
    """
    read_policy(folder)  # no lock is written into a folder that is not a policy
    with writing(folder):
        policy = read_policy(folder)
        if policy.manifest.performance is not None and not drops_risks:
            raise ConfigError(
                "the policy certifies performance risks at its own threshold, and another threshold would void them",
                key="drop_risks",
                hint="Use --drop-risks to hold the budget alone from now on, or calibrate a new policy",
            )
        if policy.manifest.performance is not None and policy.manifest.performance.band > 0.0:
            raise ConfigError(
                "the policy abstains in a band, and without its risk certificate it would decide about these inputs",
                key="drop_risks",
                hint="Calibrate a new policy",
            )
        return _recalibrate(
            folder,
            policy,
            traffic,
            alpha=alpha,
            delta=delta,
            max_turns=max_turns,
            is_growing=is_growing,
            holds_unread=holds_unread,
        )


def _recalibrate(
    folder: Path,
    policy: Policy,
    traffic: Traffic,
    *,
    alpha: float | None,
    delta: float | None,
    max_turns: int | None,
    is_growing: bool,
    holds_unread: bool,
) -> Recalibration:
    manifest, in_force = policy.manifest, policy.manifest.in_force
    past = manifest.recalibrations
    alpha = in_force.alpha if alpha is None else alpha
    delta = in_force.delta if delta is None else delta
    if past and delta != in_force.delta:
        raise ConfigError(
            f"{delta!r} differs from {in_force.delta!r}, the total delta of the recalibrations of this policy",
            key="delta",
            hint="Leave it out, or calibrate a new policy",
        )
    digest = hashlib.sha256(traffic.source.read_bytes()).hexdigest()
    if past and past[-1].sha256 == digest:
        raise DataError(
            "the policy already uses these scores", file=traffic.source, hint="Recalibrate with newer traffic"
        )
    max_turns = in_force.max_turns if max_turns is None else max_turns
    if is_growing:
        turns, look, max_turns = _grow(past, in_force, traffic, alpha, max_turns)
    else:
        turns, look = TurnScores.of(traffic.d, traffic.conversation), _Look(in_force.looks + 1)
    spent = spent_delta(delta, look.number)
    certificate = certify(turns, alpha, spent, unit=in_force.unit, max_turns=max_turns, first_look=look.first_look)
    previous = certify(
        policy.scores,
        alpha,
        spent_delta(delta, in_force.looks),
        unit=in_force.unit,
        max_turns=in_force.max_turns,
        first_look=in_force.first_look,
    )
    if certificate.status is Status.INFEASIBLE:
        return Recalibration(certificate, previous, look.number, delta, None)

    kept = folder / HISTORY_FOLDER / f"{len(past):04d}"
    kept.mkdir(parents=True, exist_ok=True)
    finish_write(folder)
    for name in (MANIFEST_FILE, TENSORS_FILE):
        shutil.copy2(folder / name, kept / name)
    record = RecalibrationRecord(
        created_at=datetime.now(UTC),
        file=traffic.source.name,
        sha256=digest,
        rows=certificate.turns,
        alpha=alpha,
        delta=delta,
        delta_spent=spent,
        k=certificate.k,
        threshold=certificate.threshold,
        unit=in_force.unit,
        conversations=certificate.conversations,
        max_turns=max_turns,
        method=certificate.method.value,
        growing=look.growing,
        continues=look.continues,
        drops_risks=manifest.performance is not None,
        holds_unread=holds_unread or turns.always > 0,
    )
    # The unreadable turns of the calibration belong to its own conversations. The new scores hold those of theirs.
    changed = manifest.model_copy(update={"recalibrations": (*past, record), "performance": None})
    write_policy(
        folder,
        changed.model_dump(exclude={"tensors_sha256"}),
        policy.probe,
        policy.calibration,
        turns=turns,
        used_rows=policy.used_rows,
    )
    return Recalibration(certificate, previous, look.number, delta, kept)


def _grow(
    past: Sequence[RecalibrationRecord],
    in_force: InForce,
    traffic: Traffic,
    alpha: float,
    max_turns: int | None,
) -> tuple[TurnScores, _Look, int]:
    """Return growing scores, their place among the looks, and the longest conversation that they are certified for.

    The bets on the conversations that were certified before must be the same ones, so alpha and the longest
    conversation stay those of the first look.
    """
    numbers = np.arange(traffic.d.size) if traffic.conversation is None else traffic.conversation
    turns = TurnScores.of(traffic.d, numbers)
    digest = _hash(traffic.d, numbers)
    last = past[-1] if past else None
    if last is None or last.growing is None or in_force.first_look is None:
        most = turns.max_turns if max_turns is None else max_turns
        return turns, _Look(in_force.looks + 1, digest, turns.conversations), most
    rows, known = last.rows, last.rows if last.conversations is None else last.conversations
    if _hash(traffic.d[:rows], numbers[:rows]) != last.growing:
        raise DataError(
            f"does not begin with the {rows} scores of the last recalibration",
            file=traffic.source,
            hint="Give the same file with later conversations added, or recalibrate without --growing",
        )
    if (numbers[rows:] < known).any():
        raise DataError(
            "a later row belongs to a conversation that was certified already",
            file=traffic.source,
            row=rows + 2 + int(np.argmax(numbers[rows:] < known)),
            hint="Write the turns of a conversation when it has ended",
        )
    for name, value, fixed in (("alpha", alpha, last.alpha), ("max_turns", max_turns, last.max_turns)):
        if fixed is not None and value != fixed:
            raise ConfigError(
                f"{value!r} differs from {fixed!r}, that of the growing scores",
                key=name,
                hint="Leave it out, or recalibrate without --growing",
            )
    most = turns.max_turns if last.max_turns is None else last.max_turns
    return turns, _Look(in_force.looks, digest, in_force.first_look, continues=True), most


def _hash(d: FloatArray, conversation: IntArray) -> str:
    return hashlib.sha256(d.tobytes() + conversation.tobytes()).hexdigest()
