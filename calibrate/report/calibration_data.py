"""The data behind the certificate of a policy, as the report and the model card name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.spending import spent_delta
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.policy.turns import BudgetUnit
from ctd_guardrail.policy.unreadable import Unreadable

__all__ = ["CalibrationData"]


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Words and numbers of the certificate in force.

    Attributes:
        count: Number of turns.
        name: ``rows``, or ``turns of 1,000 conversations``.
        method: How the threshold was found.
        per: What alpha is a share or a number of.
        max_turns: Largest number of turns of a conversation that the certificate covers.
        has_law: Whether the distribution of the share is known: every conversation has one turn.
        unreadable: Number of turns that the base model cannot read, by cause, in words; empty if there are none.
    """

    count: str
    name: str
    method: str
    per: str
    max_turns: int
    has_law: bool
    unreadable: str = ""

    @classmethod
    def of(cls, policy: Policy) -> Self:
        """Return the data of a policy."""
        scores, in_force = policy.scores, policy.manifest.in_force
        certificate = certify(
            scores,
            in_force.alpha,
            spent_delta(in_force.delta, in_force.looks),
            unit=in_force.unit,
            max_turns=in_force.max_turns,
        )
        unreadable = policy.unreadable
        return cls(
            count=f"{scores.turns:,}",
            name=f"turns of {scores.conversations:,} conversations" if scores.has_several_turns else "rows",
            method=certificate.method.value,
            per="judged turn" if in_force.unit is BudgetUnit.TURN else "conversation",
            max_turns=certificate.max_turns,
            has_law=certificate.max_turns == 1,
            unreadable=""
            if unreadable is None
            else f"{unreadable.count(Unreadable.OVERLONG):,} too long, "
            f"{unreadable.count(Unreadable.NONTEXT):,} with content other than text",
        )
